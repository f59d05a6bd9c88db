r"""DPO with a temperature for every pair, on top of TRL's DPOTrainer.

For pair i, with log-probabilities summed over completion tokens (in nats),

    D_i    = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)]
    loss_i = -log sigmoid(beta_i * D_i)                      (SP2DPO, arXiv 2601.22385)

and the loss of a batch is the mean over its pairs, as in DPO (arXiv 2305.18290, eq. 7). TRL keeps
everything else: tokenisation, models, reference, the losses themselves. A batch whose betas are
all equal gives TRL's own numbers, bit for bit (with dropout off, as TRL sets it; `ipo` and
`sppo_hard` up to the last bit, since TRL computes 1 / (2 beta) of a global beta in double).

Two things to know before reading a result:

- A beta is no weight (SP2DPO, Proposition 1): it changes the slope of the loss in D to
  -beta_i * sigmoid(-beta_i * D), where a weight w_i would only scale it, to
  -w_i * beta * sigmoid(-beta * D). The slopes agree at every D for beta_i = beta, w_i = 1 alone.
- With a larger beta_i a pair moves more at first and ends with a *smaller* margin: a label that is
  right with probability p is served best by D* = logit(p) / beta_i.

TRL's `rewards/*` metrics are multiplied by beta_i, so runs with different betas cannot be compared
by them: compare `margins/unscaled`, the mean of D_i in nats, and `rewards/accuracies`.
"""

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from trl import DPOConfig, DPOTrainer

from sp2dpo.pair_columns import (
    MISSING_BETA,
    PAIR_COLUMNS,
    PairCollator,
    is_beta,
    one_of,
    with_all_betas,
)

# These losses sort the batch: row i of their loss is not pair i any more.
SORTING_LOSSES = ("aot", "aot_unpaired", "aot_pair")
# Per-pair numbers that DeepSpeed must not round to the precision of the model.
EXACT_COLUMNS = (*PAIR_COLUMNS, "ref_chosen_logps", "ref_rejected_logps")
# TRL 1.0 finds the reference model itself, later versions are given it.
REFERENCE_IS_GIVEN = "model" in inspect.signature(DPOTrainer.compute_ref_log_probs).parameters

logger = get_logger(__name__)

# What the mixin is mixed into: a DPOTrainer, of whatever TRL version.
Trainer: Any = object


@dataclass
class PairDPOConfig(DPOConfig):
    """TRL's DPOConfig and which per-pair columns of the data set act.

    Attributes:
        pair_columns: The columns that act on the loss: `["beta"]`, or `[]` for stock DPO with the
            global `beta`. Nothing else decides it: a `beta` column that is not named is ignored.
        missing_beta: What becomes of rows whose beta is null: `error`, `drop` (the row is left
            out) or `constant` (the row gets the global `beta`). Used only if `beta` acts.

    Raises:
        ValueError: On an unknown column or mode, on a global beta that is not a finite number
            above 0, and on a setting that has no meaning with a beta per pair.
    """

    pair_columns: list[str] = field(
        default_factory=lambda: ["beta"],
        metadata={"help": "Per-pair columns that act on the loss: beta, or none for stock DPO."},
    )
    missing_beta: str = field(
        default="error",
        metadata={"help": "Rows whose beta is null: error, drop, or constant (the global beta)."},
    )

    def __post_init__(self) -> None:
        if not isinstance(self.pair_columns, list):
            raise ValueError(
                f"pair_columns must be a list, [beta] or [], not {self.pair_columns!r}"
            )
        for column in self.pair_columns:
            one_of(column, PAIR_COLUMNS, "pair_columns")
        if len(set(self.pair_columns)) < len(self.pair_columns):
            raise ValueError(f"pair_columns names a column twice: {', '.join(self.pair_columns)}")
        one_of(self.missing_beta, MISSING_BETA, "missing_beta")
        if not is_beta(self.beta):
            raise ValueError(f"beta must be a finite number above 0, not {self.beta!r}")
        super().__post_init__()
        if "beta" in self.pair_columns:
            self._refuse_what_cannot_take_a_beta_per_pair()

    def _refuse_what_cannot_take_a_beta_per_pair(self) -> None:
        sorting = sorted(set(self.loss_type) & set(SORTING_LOSSES))
        if sorting:
            raise ValueError(
                f"loss_type {', '.join(sorting)} sorts the batch, so a beta per pair has no meaning"
                " there: choose another loss_type, or set pair_columns: []"
            )
        if self.use_liger_kernel:
            raise ValueError(
                "use_liger_kernel gives wrong losses with a beta per pair: set it to false, or set"
                " pair_columns: []"
            )


class PairColumnsMixin(Trainer):
    """Makes any DPOTrainer obey the per-pair columns of its data sets.

    Write `class Mine(PairColumnsMixin, TheirDPOTrainer)`; the arguments are those of DPOTrainer,
    all but the models by keyword, and `args` is a PairDPOConfig. Everything not named here is
    inherited. Beside TRL's metrics it logs `margins/unscaled` and, where beta acts, `beta/mean`,
    `beta/min` and `beta/max`, each over all processes and averaged over the logged batches.

    Attributes:
        rows_without_beta: Data set name ("train", "eval", or the eval set's own name) -> number of
            rows whose beta was null and which `missing_beta` dropped or gave the global beta.

    Raises:
        TypeError: If `args` is no PairDPOConfig.
        ValueError: Before the model loads, if a named column is absent or holds values that are
            not finite numbers above 0. The values of a stream are checked batch by batch.
    """

    def __init__(
        self,
        *models: Any,
        args: PairDPOConfig,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Any = None,
        **rest: Any,
    ) -> None:
        if not isinstance(args, PairDPOConfig):
            raise TypeError(f"args must be a PairDPOConfig, not a {type(args).__name__}")
        self.rows_without_beta: dict[str, int] = {}
        train_dataset = self._admit(train_dataset, "train", args)
        eval_dataset = self._admit_all(eval_dataset, args)
        super().__init__(
            *models, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **rest
        )
        self.data_collator = PairCollator(self.data_collator, tuple(args.pair_columns))

    def _admit_all(self, datasets: Any, args: PairDPOConfig) -> Any:
        if isinstance(datasets, Mapping):
            return {name: self._admit(data, name, args) for name, data in datasets.items()}
        return datasets if datasets is None else self._admit(datasets, "eval", args)

    def _admit(self, dataset: Any, name: str, args: PairDPOConfig) -> Any:
        """Return the data set as it will be trained on: every row has a beta, if beta acts."""
        columns = dataset.column_names or list(next(iter(dataset)))
        if "beta" not in args.pair_columns:
            if "beta" in columns:
                logger.info(
                    f"pair_columns is empty: the column beta of the {name} data set is ignored"
                )
            return dataset
        if "beta" not in columns:
            raise ValueError(
                f"the {name} data set has no column beta (it has {', '.join(columns)}): build one,"
                " or set pair_columns: []"
            )
        if not isinstance(dataset, Dataset):
            if args.missing_beta != "error":
                raise ValueError(
                    f"missing_beta: {args.missing_beta} would have to count the rows of a stream:"
                    f" filter or fill the {name} data set yourself and use missing_beta: error"
                )
            return dataset
        dataset, self.rows_without_beta[name] = with_all_betas(
            dataset, name=name, missing=args.missing_beta, constant=args.beta
        )
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        listed = self._signature_columns or []
        self._signature_columns = [*listed, *(c for c in self.args.pair_columns if c not in listed)]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device; unlike Trainer, never round the per-pair numbers."""
        exact = {name: inputs[name] for name in EXACT_COLUMNS if name in inputs}
        prepared = super()._prepare_inputs(inputs)
        return {**prepared, **{name: v.to(self.args.device) for name, v in exact.items()}}

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as DPOTrainer does; a data set given here is checked like the others."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self._admit_all(eval_dataset, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def compute_ref_log_probs(self, *model_and_inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return TRL's reference log-probs, two (B,); the model never sees the pair columns."""
        *model, inputs = model_and_inputs
        inputs = {name: v for name, v in inputs.items() if name not in PAIR_COLUMNS}
        return super().compute_ref_log_probs(*model, inputs)

    def _reference(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.precompute_ref_logps:
            return {name: inputs[name] for name in ("ref_chosen_logps", "ref_rejected_logps")}
        model = [self.model if self.ref_model is None else self.ref_model] * REFERENCE_IS_GIVEN
        chosen, rejected = self.compute_ref_log_probs(*model, inputs)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return TRL's loss, a scalar, with the batch's own betas in place of the global one.

        TRL reads `self.beta` once per formula and broadcasts, so a (B,) tensor is all it takes.
        The reference log-probs are computed first and handed over as precomputed ones (no forward
        pass more than TRL's): without them D_i cannot be told from beta_i * D_i.
        """
        settings = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        metrics = self._metrics["train" if self.model.training else "eval"]
        if "beta" not in self.args.pair_columns:
            result = super().compute_loss(model, inputs, **settings)
            metrics["margins/unscaled"].append(metrics["rewards/margins"][-1] / self.beta)
            return result
        inputs = dict(inputs)
        beta = inputs.pop("beta")
        reference = self._reference(inputs)
        inputs |= reference
        stock = self.beta, self.precompute_ref_logps
        self.beta, self.precompute_ref_logps = beta, True
        try:
            result = super().compute_loss(model, inputs, **settings)
        finally:
            self.beta, self.precompute_ref_logps = stock
        ref_margin = reference["ref_chosen_logps"] - reference["ref_rejected_logps"]
        gathered: Any = self.accelerator.gather(torch.stack((beta, ref_margin), dim=1))
        betas, ref_margins = gathered.T
        margin = metrics["logps/chosen"][-1] - metrics["logps/rejected"][-1]
        metrics["margins/unscaled"].append(margin - ref_margins.mean().item())
        for statistic in ("mean", "min", "max"):
            metrics[f"beta/{statistic}"].append(getattr(betas, statistic)().item())
        return result


# TRL 1.0 calls compute_ref_log_probs with one argument, later versions with two.
class PairDPOTrainer(PairColumnsMixin, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """DPOTrainer with a beta for every pair: see PairColumnsMixin."""

    _tag_names: ClassVar = [*DPOTrainer._tag_names, "sp2dpo"]
    _name = "SP2DPO"
    _paper: ClassVar = {
        "title": "SP^2DPO: An LLM-assisted Semantic Per-Pair DPO Generalization",
        "id": "2601.22385",
        "citation": textwrap.dedent("""\
            @article{he2026sp2dpo,
                title         = {{SP$^2$DPO}: An {LLM}-assisted Semantic Per-Pair {DPO}
                                 Generalization},
                author        = {He, Chaoyue and Zhou, Xin and Wang, Di and Xu, Hong and
                                 Liu, Wei and Miao, Chunyan},
                year          = 2026,
                eprint        = {2601.22385},
                archivePrefix = {arXiv},
            }"""),
    }

    def __init__(self, *models: Any, args: PairDPOConfig, **rest: Any) -> None:
        if isinstance(args, PairDPOConfig) and not args.pair_columns:
            # What no column acts on is plain DPO, and its tags and its model card say so.
            for name in ("_tag_names", "_name", "_paper"):
                setattr(self, name, getattr(DPOTrainer, name))
        super().__init__(*models, args=args, **rest)
