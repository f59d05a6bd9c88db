"""The rows of a run: one data set, a mixture of several, or a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset

from sp2dpo.training.columns import (
    LARGEST_SMOOTHING,
    MARK_COLUMNS,
    MarkCounts,
    apply_marks,
    column_values,
)
from sp2dpo.training.provenance import read_split
from sp2dpo.training.reward_model import hash_fraction
from sp2dpo.training.rows import RESPONSES, column_names, number_rows
from sp2dpo.training.sources import (
    Part,
    SourceConfig,
    check_columns,
    concatenate,
    interleave,
    map_columns,
    mixture_sizes,
    read_source,
    sample_rows,
)

logger = get_logger(__name__)


@dataclass
class DataConfig:
    """The data to train and to evaluate on.

    Attributes:
        dataset: A folder built by `sp2dpo build`, a .jsonl, .jsonl.gz or .parquet file, or the name
            of a data set on the Hub: `org/name` or `org/name/config:split@revision`.
        dataset_revision: Commit, tag or branch of `dataset` on the Hub.
        dataset_split: The split to read from `dataset`, and from `eval_dataset`.
        columns: Names of the columns of `dataset` by the names that a run uses, such as
            `{prompt: question, beta: my_beta}`; on the command line `prompt=question`.
        datasets: Several data sets that are mixed, instead of `dataset`; see `SourceConfig`.
        mixture_seed: Seed of the choice of the rows of a mixture with weights.
        streaming: Whether to read the data while training, which needs `max_steps`.
        shuffle_buffer: Number of rows of a stream among which the next one is chosen at random; 0
            keeps the order of the first epoch.
        eval_dataset: A second folder, file or Hub name to evaluate on, instead of held-out prompts.
        eval_revision: Commit, tag or branch of `eval_dataset` on the Hub.
        eval_columns: As `columns`, for `eval_dataset`; `columns` if it is not set.
        held_out: Share of the prompts, in [0, 0.9], to evaluate on and never train on.
        traceback: Whether to show the traceback of an error, not only its message.

    Raises:
        ValueError: On a bad value, and on settings that exclude each other.
    """

    dataset: str | None = field(default=None, metadata={"help": "Folder, file, or Hub name."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "The split to read."})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Its columns by the names of a run: prompt=question."}
    )
    datasets: list[SourceConfig] = field(
        default_factory=list, metadata={"help": "Several data sets, which are mixed."}
    )
    mixture_seed: int = field(default=0, metadata={"help": "Seed of the rows of a mixture."})
    streaming: bool = field(default=False, metadata={"help": "Read the data while training."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Rows that a stream shuffles."})
    eval_dataset: str | None = field(default=None, metadata={"help": "What to evaluate on."})
    eval_revision: str | None = field(default=None, metadata={"help": "Its commit on the Hub."})
    eval_columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Its columns by the names of a run."}
    )
    held_out: float = field(default=0.0, metadata={"help": "Share of the prompts to evaluate on."})
    traceback: bool = field(default=False, metadata={"help": "Show the traceback of an error."})

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= 0.9:
            raise ValueError(f"held_out must be in [0, 0.9], not {self.held_out}")
        if self.held_out and self.eval_dataset:
            raise ValueError("held_out and eval_dataset exclude each other: set one of them")
        if not isinstance(self.datasets, list):
            raise ValueError(f"datasets must be a list, not {self.datasets!r}")
        self.datasets = [SourceConfig.parse(entry) for entry in self.datasets]
        if self.datasets and self.dataset:
            raise ValueError("dataset and datasets exclude each other: set one of them")
        for name in ("columns", "eval_columns"):
            value: Any = getattr(self, name)
            setattr(self, name, None if value is None else check_columns(value, name))
        if self.datasets and self.columns:
            raise ValueError("columns belongs to dataset: set columns in each entry of datasets")
        weights = [source.weight for source in self.datasets]
        if None in weights and any(weights):
            raise ValueError("datasets: set a weight for every data set, or for none")
        if not self.streaming:
            return
        if self.held_out:
            raise ValueError(
                "held_out needs all rows, and streaming reads them later: set"
                " eval_dataset, or streaming: false"
            )
        if len(self.datasets) > 1 and None in weights:
            raise ValueError(
                "datasets: a stream has no number of rows, so streaming needs a"
                " weight for every data set"
            )
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must be 0 or more, not {self.shuffle_buffer}")

    @property
    def sources(self) -> list[SourceConfig]:
        """The data sets to train on; `dataset` alone is a mixture of one."""
        if self.datasets:
            return self.datasets
        return [
            SourceConfig(
                path=str(self.dataset), split=self.dataset_split, revision=self.dataset_revision,
                columns=self.columns,
            )
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SourceRows:
    """What was read of one data set, and what is used of it.

    Attributes:
        source: Settings of the data set.
        read: The rows as they were read.
        available: Number of rows that were read, without those held out; None for a stream.
        train: Number of rows to train on, after marks and weights; None for a stream.
        test: Number of rows that are held out to evaluate on; None for a stream.
    """

    source: SourceConfig
    read: Any
    available: int | None
    train: int | None
    test: int | None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The rows of a run.

    Attributes:
        train: The rows to train on, with `keep` and `flip` applied.
        test: The rows to evaluate on; None without an evaluation.
        marks: Number of rows that `keep` and `flip` affected; None for a stream.
        sources: The data sets to train on.
    """

    train: Any
    test: Dataset | None
    marks: MarkCounts | None
    sources: Sequence[SourceRows]

    @property
    def available(self) -> int | None:
        """Number of rows to train on before `keep`, `flip` and weights; None for a stream."""
        counts = [rows.available for rows in self.sources]
        return None if None in counts else sum(count or 0 for count in counts)


def load_data(data: DataConfig, *, needed: Sequence[str] = (), seed: int = 0) -> RunData:
    """Return the rows of a run.

    The hash of a prompt decides whether its pairs are held out, so they stay there when the data
    set grows. All arms of a comparison are evaluated on the same rows with the same labels: `keep`
    and `flip` do not act on rows to evaluate on.

    Args:
        data: The settings.
        needed: Per-pair columns that every data set of a mixture must have.
        seed: Seed of the order of a stream.

    Raises:
        ValueError: If a data set cannot be read, a column is missing, or one side of the split has
            no pair.
    """
    parts = [_load_source(data, source) for source in data.sources]
    mixed = len(data.datasets) > 1
    if mixed:
        _check_mixture(parts, needed)
    if data.streaming:
        train = _stream(parts, seed=seed, buffer=data.shuffle_buffer)
        marks = None
    else:
        parts = _apply_weights(parts, seed=data.mixture_seed) if mixed else parts
        train = concatenate([part.part(part.train) for part in parts]) if mixed else parts[0].train
        counts = [part.marks for part in parts]
        marks = MarkCounts(
            left_out=sum(count.left_out for count in counts if count),
            flipped=sum(count.flipped for count in counts if count),
        )
    return RunData(
        train=train,
        test=_load_test(data, parts),
        marks=marks,
        sources=[part.count() for part in parts],
    )


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """One data set, read and split."""

    source: SourceConfig
    read: Any
    train: Any
    test: Any
    available: int | None
    marks: MarkCounts | None

    def part(self, rows: Any) -> Part:
        return Part(label=self.source.label, rows=rows, weight=self.source.weight)

    def count(self) -> SourceRows:
        return SourceRows(
            source=self.source,
            read=self.read,
            available=self.available,
            train=_count(self.train),
            test=_count(self.test),
        )


def _count(rows: Any) -> int | None:
    return len(rows) if isinstance(rows, Dataset) else None


def _load_source(data: DataConfig, source: SourceConfig) -> _Loaded:
    read = read_source(source, streaming=data.streaming)
    # Before rows are selected, so that messages have the numbers of the source.
    rows, test = number_rows(read), None
    if data.held_out:
        rows, test = split_by_prompt(
            rows, data.held_out, source.label, may_be_empty=len(data.datasets) > 1
        )
    available = _count(rows)
    # The marks are applied here and not by the trainer, because `provenance` hashes the rows that
    # are trained on. `apply_marks` removes the marks, so the trainer does not apply them again.
    train, marks = apply_marks(rows, name=source.label if data.datasets else "train")
    test = None if test is None else remove_marks(test)
    return _Loaded(
        source=source, read=read, train=train, test=test, available=available, marks=marks
    )


def split_by_prompt(
    rows: Dataset, held_out: float, label: str, *, may_be_empty: bool = False
) -> tuple[Dataset, Dataset]:
    """Return the rows to train on and those whose prompts are held out.

    Args:
        rows: The rows.
        held_out: Share of the prompts.
        label: Name of the data set in messages.
        may_be_empty: Whether the side that is held out may be empty.

    Raises:
        ValueError: If there is no column `prompt`, or if one side has no row.
    """
    if "prompt" not in rows.column_names:
        raise ValueError(f"held_out needs a column prompt, {label} has none")
    in_test = [hash_fraction(prompt) < held_out for prompt in rows["prompt"]]
    if all(in_test) or not (any(in_test) or may_be_empty):
        raise ValueError(
            f"held_out {held_out} puts all {len(in_test)} pairs on one side of the split of"
            f" {label}: choose another share"
        )
    return (
        rows.select([row for row, is_test in enumerate(in_test) if not is_test]),
        rows.select([row for row, is_test in enumerate(in_test) if is_test]),
    )


def remove_marks(rows: Dataset) -> Dataset:
    """Return the rows without the columns `keep` and `flip`, so that neither acts on any row.

    The label smoothing eps of a row with `flip: true` belongs to the exchanged responses. That of
    the row as it is would be 1 - eps, above 1/2; it becomes the largest that is legal.
    """
    if "flip" in rows.column_names and "label_smoothing" in rows.column_names:
        flips, smoothing = (column_values(rows, name) for name in ("flip", "label_smoothing"))
        kept = [
            LARGEST_SMOOTHING if flip and eps is not None else eps
            for flip, eps in zip(flips, smoothing, strict=True)
        ]
        feature = rows.features["label_smoothing"]
        rows = rows.remove_columns("label_smoothing").add_column(
            "label_smoothing", kept, feature=feature
        )
    return rows.remove_columns([name for name in MARK_COLUMNS if name in rows.column_names])


def _check_mixture(parts: Sequence[_Loaded], needed: Sequence[str]) -> None:
    columns = {part.source.label: column_names(part.train) for part in parts}
    with_prompt = any("prompt" in names for names in columns.values())
    for label, names in columns.items():
        for column in (*RESPONSES, *(["prompt"] if with_prompt else []), *needed):
            if column in names:
                continue
            constant = f", or set constants: {{{column}: ...}}" if column in needed else ""
            raise ValueError(
                f"datasets: {label} has no column {column} (it has"
                f" {', '.join(name for name in names if not name.startswith('_'))}): map one to it"
                f" by columns: {{{column}: ...}}{constant}"
            )


def _apply_weights(parts: Sequence[_Loaded], *, seed: int) -> list[_Loaded]:
    if parts[0].source.weight is None:
        return list(parts)
    sizes = [len(part.train) for part in parts]
    weights = [float(part.source.weight or 0) for part in parts]
    chosen = []
    for number, (part, count) in enumerate(zip(parts, mixture_sizes(sizes, weights), strict=True)):
        logger.warning(f"{part.source.label}: {count} of {sizes[number]} rows are in the mixture")
        test = part.test
        if test is not None and len(test):  # the same share, so that both sides are mixed alike
            test_count = max(1, round(len(test) * count / sizes[number]))
            test = sample_rows(test, test_count, seed=seed, number=number)
        train = sample_rows(part.train, count, seed=seed, number=number)
        chosen.append(replace(part, train=train, test=test))
    return chosen


def _stream(parts: Sequence[_Loaded], *, seed: int, buffer: int) -> Any:
    streams = [
        part.train.shuffle(seed=seed, buffer_size=buffer) if buffer else part.train
        for part in parts
    ]
    if len(parts) == 1:
        return streams[0]
    return interleave(
        [part.part(rows) for part, rows in zip(parts, streams, strict=True)], seed=seed
    )


def _load_test(data: DataConfig, parts: Sequence[_Loaded]) -> Dataset | None:
    if data.eval_dataset:
        rows = read_split(data.eval_dataset, data.dataset_split, data.eval_revision)
        columns: Any = data.columns if data.eval_columns is None else data.eval_columns
        return remove_marks(map_columns(rows, columns, data.eval_dataset))
    if not data.held_out:
        return None
    # A small data set of a mixture may have no prompt that is held out.
    tests = [part.part(part.test) for part in parts if len(part.test)]
    if not tests:
        raise ValueError(f"held_out {data.held_out} holds out no pair: choose a larger share")
    return concatenate(tests) if len(parts) > 1 else tests[0].rows
