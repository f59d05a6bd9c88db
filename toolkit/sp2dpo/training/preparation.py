"""Prepare the data sets of a DPO trainer: check their rows, apply their marks, tokenise them.

The rows are checked before the model's weights are read, its chat template too if only the name of
the model is given.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import DPOTrainer

from sp2dpo.training.chat_templates import (
    TEMPLATE_ERRORS,
    check_template,
    drop_refused,
    warn_of_tools,
)
from sp2dpo.training.columns import (
    PAIR_COLUMNS,
    MarkCounts,
    apply_marks,
    check_exo,
    column_values,
    fill_missing_values,
    fill_missing_values_of_stream,
    without_format,
)
from sp2dpo.training.config import PairDPOConfig
from sp2dpo.training.lengths import LengthReport, check_lengths, drop_truncated, measure_lengths
from sp2dpo.training.model_files import context_length, read_config, read_processing_class
from sp2dpo.training.reference import REFERENCE
from sp2dpo.training.rows import ROW, SOURCE, check_rows, column_names

logger = get_logger(__name__)


def bind_arguments(
    init: Callable[..., None], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a trainer's constructor by name.

    Args:
        init: The bound constructor. If it takes any number of arguments by position, as one that
            passes them on, those after its own are named as DPOTrainer's.
        arguments: Arguments by position.
        options: Arguments by keyword.

    Raises:
        TypeError: If there are too many arguments by position, or one of them is given twice.
    """
    parameters = inspect.signature(init).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        stock = [name for name in inspect.signature(DPOTrainer).parameters if name not in names]
        names += stock
    if len(arguments) > len(names):
        raise TypeError(
            f"the trainer takes up to {len(names)} arguments by position ({', '.join(names)}), not"
            f" {len(arguments)}"
        )
    by_position = dict(zip(names, arguments, strict=False))
    for name in by_position:
        if name in options:
            raise TypeError(f"the argument {name} is given twice, by position and by keyword")
    return by_position | dict(options)


def check_arguments(args: Any, train_dataset: Any) -> None:
    """Refuse settings without per-pair columns, and a training set of another kind.

    Raises:
        TypeError: If `args` is not a PairDPOConfig, or the data set neither a Dataset nor an
            IterableDataset.
        ValueError: If there is no training set.
    """
    if not isinstance(args, PairDPOConfig):
        kind = type(args).__name__
        way_out = "write PairDPOConfig(...) with the same arguments"
        if kind != "DPOConfig":
            way_out = f"let {kind} inherit from PairDPOConfig in place of DPOConfig"
        raise TypeError(
            f"args must be a PairDPOConfig, not a {kind}, which has no pair_columns: {way_out}"
        )
    if train_dataset is None:
        raise ValueError("`train_dataset` is required: give the constructor a data set")
    if not isinstance(train_dataset, Dataset | IterableDataset):
        raise TypeError(
            "`train_dataset` must be a `Dataset` or `IterableDataset`, not a"
            f" {type(train_dataset).__name__}{_splits(train_dataset)}"
        )


def _splits(dataset: Any) -> str:
    """Return the way out for a dictionary of data sets."""
    return f": pass one of {', '.join(dataset)}" if isinstance(dataset, Mapping) else ""


class RowPreparation:
    """The preparation of a trainer's data sets, and what is counted on the way.

    Attributes:
        without_beta: Number of rows with a null in a column of `pair_columns`, by data set name.
        refused: Number of rows that the chat template refused and that were dropped, likewise.
        marks: Number of rows that `keep` and `flip` affected, likewise; a stream has no entry.
        lengths: What `max_length` cuts, likewise.

    Args:
        args: Settings of the trainer.
        model: The model, or its name, or None if the trainer's constructor chooses it.
        processing_class: The processing class that the trainer was given, or None.
    """

    def __init__(self, args: PairDPOConfig, model: Any, processing_class: Any) -> None:
        self.without_beta: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.marks: dict[str, MarkCounts] = {}
        self.lengths: dict[str, LengthReport] = {}
        self._args = args
        self._model = model
        self._processing_class = processing_class

    @property
    def _name(self) -> str:
        """Name of the model in messages."""
        return self._model if isinstance(self._model, str) else "the model"

    @cached_property
    def _context(self) -> int | None:
        """Longest sequence of the model, in tokens; None if it is not known."""
        kwargs: Any = self._args.model_init_kwargs or {}
        if isinstance(self._model, str):
            config = read_config(
                self._model, kwargs.get("revision"),
                trust_remote_code=kwargs.get("trust_remote_code", self._trusts_code),
            )  # fmt: skip
        else:
            config = getattr(self._model, "config", None)
        return None if config is None else context_length(config)

    @cached_property
    def _processor(self) -> Any:
        """The trainer's tokenizer or processor; None for a model of texts that is loaded."""
        if self._processing_class is not None:
            return self._processing_class
        kwargs: Any = self._args.model_init_kwargs or {}
        name, revision = self._model, kwargs.get("revision")
        if not isinstance(name, str):
            config: Any = getattr(name, "config", None)
            if not hasattr(config, "vision_config"):
                return None
            name, revision = config._name_or_path, None
        return read_processing_class(name, revision, trust_remote_code=self._trusts_code)

    @property
    def _trusts_code(self) -> bool:
        return bool(getattr(self._args, "trust_remote_code", False))  # TRL 1.0 lacks the setting

    def sees_images(self) -> bool:
        """Return whether the model takes images: whether its processing class is a processor."""
        return isinstance(self._processor, ProcessorMixin)

    def prepare(self, dataset: Any, name: str) -> Any:
        """Return the rows to train on, checked, with marks applied and missing values treated.

        Args:
            dataset: A Dataset or an IterableDataset.
            name: Name of the data set in messages.

        Raises:
            TypeError: If it is neither.
            ValueError: If a column or a row cannot be used.
        """
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(
                f"the {name} data set must be a `Dataset` or `IterableDataset`, not a"
                f" {type(dataset).__name__}{_splits(dataset)}"
            )
        if isinstance(dataset, IterableDataset) and self._args.precompute_ref_log_probs:
            missing = [name for name in REFERENCE if name not in column_names(dataset)]
            if missing:
                cache = self._args.reference_cache
                way_out = (
                    "unset reference_cache" if cache else "set precompute_ref_log_probs to false"
                )
                raise ValueError(
                    "precompute_ref_log_probs is not supported with IterableDataset, whose rows"
                    f" are read during training: the {name} data set is one and has no column"
                    f" {missing[0]}; {way_out}, or load the data set without streaming"
                )
        return check_rows(self._prepare_columns(dataset, name), name, sees_images=self.sees_images)

    def prepare_all(self, datasets: Any) -> Any:
        """Return the data sets for evaluation, one or several by name; None stays None."""
        if isinstance(datasets, Mapping):
            return {name: self.prepare(dataset, name) for name, dataset in datasets.items()}
        return datasets if datasets is None else self.prepare(datasets, "eval")

    def check_templates(self, datasets: Mapping[str, Any]) -> None:
        """Check the chat template of a model by the rows, before its weights are read.

        Args:
            datasets: Prepared data sets by name.

        Raises:
            ValueError: If the model's configuration or tokenizer cannot be read, or if the template
                refuses a row.
        """
        # The template of a model that is loaded is checked when the data set is tokenised.
        if not isinstance(self._model, str):
            return
        _ = self._context  # before the weights, so that a wrong name fails at once
        tokenizer = self._processor
        if self._args.template_errors == "drop":
            if self.sees_images():
                raise ValueError(
                    "template_errors: drop is for models of texts alone: set it to error, and"
                    " leave the rows out yourself"
                )
            return  # the rows are dropped when the data set is tokenised
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        for name, dataset in datasets.items():
            if isinstance(dataset, Dataset):
                ignored = check_template(tokenizer, dataset, name, self._name)
                warn_of_tools(ignored, name, self._name)

    def _prepare_columns(self, dataset: Any, name: str) -> Any:
        """Apply the marks, and fill or drop missing values."""
        args = self._args
        dataset = without_format(dataset)
        dataset, counts = apply_marks(dataset, name=name)
        if counts is not None:
            self.marks[name] = counts
        columns = column_names(dataset)
        for column in PAIR_COLUMNS:
            if column in columns and column not in args.pair_columns:
                listed = ", ".join(args.pair_columns) or "empty"
                # Without its other columns, the betas of an arm are not those of the arm.
                level = logging.INFO if column == "beta" else logging.WARNING
                logger.log(
                    level,
                    f"pair_columns is {listed}: the column {column} of the {name} data set is"
                    " ignored",
                )
        for column in args.pair_columns:
            if column not in columns:
                raise ValueError(
                    f"the {name} data set has no column {column} (it has"
                    f" {', '.join(c for c in columns if c not in (ROW, SOURCE))}):"
                    " build one, or remove it from pair_columns"
                )
        if not args.pair_columns:
            return dataset
        if not isinstance(dataset, Dataset):
            # A stream is read once, during training: its values are checked by the collator.
            return fill_missing_values_of_stream(
                dataset, tuple(args.pair_columns), name=name, missing=args.missing_values,
                constant=args.beta,
            )  # fmt: skip
        dataset, self.without_beta[name] = fill_missing_values(
            dataset, tuple(args.pair_columns), name=name, missing=args.missing_values,
            constant=args.beta,
        )  # fmt: skip
        # TRL checks the global value only.
        if "exo_pair" in args.loss_type and "label_smoothing" in args.pair_columns:
            check_exo(column_values(dataset, "label_smoothing"), f"the {name} data set")
        return dataset

    def tokenise(
        self, dataset: Any, processing_class: Any, name: str, by_trainer: Callable[[Any], Any]
    ) -> Any:
        """Tokenise as the trainer does, and name the row that cannot be tokenised or trained on.

        Args:
            dataset: A prepared data set.
            processing_class: The trainer's tokenizer or processor.
            name: Name of the data set in messages.
            by_trainer: The trainer's own tokenisation of a data set.

        Raises:
            ValueError: If a row cannot be used, no row is left, or a per-pair column is lost.
        """
        args, checks_template = self._args, isinstance(processing_class, PreTrainedTokenizerBase)
        if isinstance(dataset, Dataset) and args.template_errors == "drop" and checks_template:
            row_count = len(dataset)
            dataset = drop_refused(processing_class, dataset, name, self._name)
            self.refused[name] = row_count - len(dataset)
            ignored = check_template(processing_class, dataset, name, self._name)
            warn_of_tools(ignored, name, self._name)
        try:
            prepared = by_trainer(dataset)
        except TEMPLATE_ERRORS:
            if isinstance(dataset, Dataset) and checks_template:
                check_template(processing_class, dataset, name, self._name, every_row=True)
            raise
        if not isinstance(dataset, Dataset):
            return prepared
        for column in args.pair_columns:
            if column not in prepared.column_names:
                raise ValueError(
                    f"_prepare_dataset of the trainer drops the column {column} of the {name} data"
                    " set: keep it, or remove it from pair_columns"
                )
        report = None
        if args.max_length is not None and "prompt_ids" in prepared.column_names and len(prepared):
            lengths = measure_lengths(prepared, args.max_length, args.truncation_mode)
            self.lengths[name], report = lengths, lengths.sentence(self._context)
        if args.max_length is not None and args.truncation_mode == "keep_start":
            prepared = drop_truncated(prepared, args.max_length)
        check_lengths(
            dataset, prepared, name, context=self._context, longest=args.max_length, report=report,
            limit=f"the prompt alone fills max_length {args.max_length}, so that no response"
            " would be left; raise max_length, or set truncation_mode: keep_end",
        )  # fmt: skip
        return prepared
