r"""DPO with a separate beta for every pair, on top of TRL's DPOTrainer.

For pair i, with log-probabilities summed over completion tokens (in nats),

    D_i    = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)]
    loss_i = -log sigmoid(beta_i * D_i)                      (SP2DPO, arXiv 2601.22385)

and the loss of a batch is the mean over its pairs, as in DPO (arXiv 2305.18290, eq. 7). Everything
else is TRL's: tokenisation, models, reference, the losses themselves. A batch whose betas are all
equal gives the same numbers as TRL (with dropout off, as TRL sets it): bit for bit with
`shared_prompt: false`, to 1e-5 in float32 with the shared prompt. With a weight, a margin, label
smoothing or an online variant, the losses come from `losses` and are compared with TRL's.

Two points to know before interpreting results:

- A beta is not a weight (SP2DPO, Proposition 1): it changes the slope of the loss in D to
  -beta_i * sigmoid(-beta_i * D), where a weight w_i would only scale it, to
  -w_i * beta * sigmoid(-beta * D). The slopes agree at every D only if beta_i = beta and w_i = 1.
- With a larger beta_i, a pair moves more at first and ends with a *smaller* margin: for a label
  that is right with probability p, the loss is smallest at D* = logit(p) / beta_i.

TRL's `rewards/*` metrics are multiplied by beta_i, so they cannot be compared between runs with
different betas: compare `margins/unscaled`, the mean of D_i in nats, and `rewards/accuracies`.
"""

import copy
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from trl import DPOTrainer

from sp2dpo.training.batch import (
    Mixture,
    OutputRecorder,
    PairBatch,
    check_against_trl,
    check_finite,
    make_batch,
)
from sp2dpo.training.beta_proxy import BetaProxy
from sp2dpo.training.card import DataCardMixin
from sp2dpo.training.columns import (
    CATEGORY,
    PAIR_COLUMNS,
    PairCollator,
    category_names,
    check_log_probs,
    column_values,
    to_double,
)
from sp2dpo.training.config import CAPTURES, PairDPOConfig
from sp2dpo.training.gradients import GradientMetrics
from sp2dpo.training.losses import LOSSES, SFT
from sp2dpo.training.online import (
    AlphaDpoState,
    BetaDpoState,
    GammaPoState,
    RePoState,
    apply_online_variants,
)
from sp2dpo.training.preparation import RowPreparation, bind_arguments, check_arguments
from sp2dpo.training.reference import REFERENCE, add_log_probs
from sp2dpo.training.rows import column_names
from sp2dpo.training.shared_prompt import SharedPrompt
from sp2dpo.training.streams import StreamRows

# Per-pair numbers that must not be rounded to the precision of the model, as DeepSpeed would.
EXACT_COLUMNS = (*PAIR_COLUMNS, *REFERENCE)
# TRL 1.0 determines the reference model itself; later versions take it as an argument.
REFERENCE_IS_GIVEN = "model" in inspect.signature(DPOTrainer.compute_ref_log_probs).parameters
GUARD_EVERY = 100
"""Number of batches between comparisons of our loss with TRL's; the first batch is compared."""

logger = get_logger(__name__)

# The mixin is meant for subclasses of DPOTrainer, whose methods differ between TRL versions.
Trainer: Any = object


class PairColumnsMixin(DataCardMixin, Trainer):
    """Make any DPOTrainer apply the per-pair columns of its data sets.

    Write `class Mine(PairColumnsMixin, TheirDPOTrainer)`. The arguments are those of
    TheirDPOTrainer, and `args` is a PairDPOConfig. Everything not named here is inherited. With
    weights, margins, label smoothing or an online variant, the loss is computed by `losses` and
    compared with TRL's on the first batch and on every `GUARD_EVERY`th batch after it, so
    TheirDPOTrainer must not change TRL's loss. In addition to TRL's metrics, the trainer logs
    `margins/unscaled` and, with a beta column, `beta/mean`, `beta/min` and `beta/max`, each over
    all processes and averaged over the logged batches; on TRL 1.16 or later, also the metrics of
    `gradients`.

    Attributes:
        rows_without_beta: Number of rows with a null in a column of `pair_columns`, which
            `missing_values` dropped or filled, by data set name ("train", "eval", or the name of
            the eval set). A stream has no entry.
        rows_refused: Number of rows that the chat template refused and `template_errors` dropped,
            by data set name.
        length_reports: What `max_length` cuts, by data set name; see `lengths`.
        mark_counts: Number of rows that the columns `keep` and `flip` left out and flipped, by data
            set name; see `columns.apply_marks`. A stream has no entry.

    Raises:
        TypeError: If `args` is not a PairDPOConfig.
        ValueError: Before the model loads, if a column in `pair_columns` is missing or holds bad
            values. The values of a stream are checked batch by batch.
        FloatingPointError: During training, if a loss is NaN or infinite.
        RuntimeError: During training, if TRL's loss differs from ours.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        settings = bind_arguments(super().__init__, arguments, options)
        args = self._read_args(settings)
        train_dataset, eval_dataset = settings.get("train_dataset"), settings.get("eval_dataset")
        check_arguments(args, train_dataset)
        self.card_rows = train_dataset
        # The rows are checked first, because TRL's constructor loads the model.
        self._preparation = RowPreparation(
            args, settings.get("model"), settings.get("processing_class")
        )
        self.rows_without_beta = self._preparation.without_beta
        self.rows_refused = self._preparation.refused
        self.mark_counts = self._preparation.marks
        self.length_reports = self._preparation.lengths
        train_dataset = self._preparation.prepare(train_dataset, "train")
        eval_dataset = self._preparation.prepare_all(eval_dataset)
        evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}
        self._preparation.check_templates({"train": train_dataset, **evaluated})
        # Metrics by category need the loss of each pair.
        names = category_names(train_dataset) if CAPTURES else None
        betas: list[float] = []  # a stream's betas are not known in advance
        if "beta" in args.pair_columns and isinstance(train_dataset, Dataset):
            betas = column_values(train_dataset, "beta")
        self._gradients = {
            mode: GradientMetrics(betas, names or [], inverts=args.inverts)
            for mode in ("train", "eval")
        }
        self._guarded = {"train": 0, "eval": 0}
        self._sharing: SharedPrompt | None = None
        # Arguments stay by position, for a constructor that only passes them on.
        settings |= {"args": args, "train_dataset": train_dataset}
        if "eval_dataset" in settings:  # a constructor of a subclass may not take it
            settings["eval_dataset"] = eval_dataset
        positional = [settings.pop(name) for name in list(settings)[: len(arguments)]]
        super().__init__(*positional, **settings)
        for setting, state in (
            ("beta_dpo", BetaDpoState), ("alpha_dpo", AlphaDpoState), ("gamma_po", GammaPoState),
        ):  # fmt: skip
            if getattr(args, setting):
                self.add_callback(state())
        if args.re_po:
            self.add_callback(RePoState(args.re_po))
        # DPOTrainer's constructor creates the collator that this one wraps.
        self.data_collator = PairCollator(
            self.data_collator, tuple(args.pair_columns), category=names is not None,
            exo="exo_pair" in args.loss_type,
        )  # fmt: skip

    def _read_args(self, settings: Mapping[str, Any]) -> PairDPOConfig:
        """Return the argument `args`, or a default like DPOTrainer's.

        Without a column `beta` to apply, the default is stock DPO, with a warning.
        """
        args = settings.get("args")
        if args is not None:
            return args
        model: Any = settings.get("model")
        name = model if isinstance(model, str) else model.config._name_or_path
        args = PairDPOConfig(f"{name.rstrip('/').rsplit('/', 1)[-1]}-DPO")
        columns = getattr(settings.get("train_dataset"), "column_names", None)
        if columns is not None and "beta" not in columns:
            logger.warning(
                "the train data set has no column beta: this is stock DPO with the global beta"
                f" {args.beta}"
            )
            args.pair_columns = []
        return args

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """Tokenise as DPOTrainer does, and name the row that cannot be tokenised or trained on."""
        prepare = super()._prepare_dataset
        is_stock = getattr(prepare, "__func__", None) is DPOTrainer._prepare_dataset
        if is_stock and isinstance(dataset, Dataset):
            # TRL would drop rows before their lengths are counted; `tokenise` drops the same ones.
            args = copy.copy(args)
            args.max_length = None
        return self._preparation.tokenise(
            dataset, processing_class, dataset_name,
            lambda rows: prepare(rows, processing_class, args, dataset_name),
        )  # fmt: skip

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as Trainer does, but under FSDP2 without casting the outputs."""
        super().create_accelerator_and_postprocess()
        plugin: Any = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy = getattr(plugin, "mixed_precision_policy", None)
        if policy is not None and getattr(plugin, "fsdp_version", 1) == 2:
            # Accelerate configures FSDP2 to cast the model's outputs to 16 bits, which would also
            # round the log-probs of sequences.
            plugin.mixed_precision_policy = replace(policy, output_dtype=None)

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer drops the columns that are not listed here, with a message at level INFO only.
        super()._set_signature_columns_if_needed()
        listed = self._signature_columns or []
        adds_category = isinstance(self.data_collator, PairCollator) and self.data_collator.category
        ours = [*self.args.pair_columns, *([CATEGORY] if adds_category else [])]
        self._signature_columns = [*listed, *(name for name in ours if name not in listed)]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device without rounding the per-pair numbers, unlike Trainer."""
        # Under DeepSpeed with 16 bits, Trainer casts every float of a batch: reference log-probs of
        # some hundred nats would be off by up to half a nat.
        exact = {name: inputs[name] for name in EXACT_COLUMNS if name in inputs}
        prepared = super()._prepare_inputs(inputs)
        device = self.args.device
        return prepared | {name: to_double(value, device) for name, value in exact.items()}

    def _get_dataloader(self, dataset: Any, *args: Any, **options: Any) -> Any:
        """Return Trainer's loader of a data set; a stream is read as `streams` describes."""
        if isinstance(dataset, IterableDataset):
            strategies = ("eval_strategy", "save_strategy", "logging_strategy")
            needs_end = any(getattr(self.args, name) == "epoch" for name in strategies)
            endless = options.get("is_training", False) and not needs_end
            dataset = StreamRows(dataset, endless=endless)
        return super()._get_dataloader(dataset, *args, **options)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as DPOTrainer does; check a data set that is passed here like all others."""
        if not isinstance(eval_dataset, str):  # a name, with which Trainer calls this for each set
            eval_dataset = self._preparation.prepare_all(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def compute_ref_log_probs(self, *model_and_inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return TRL's reference log-probs, two (B,), without passing pair columns to the model."""
        *model, inputs = model_and_inputs
        inputs = {name: v for name, v in inputs.items() if name not in (*PAIR_COLUMNS, CATEGORY)}
        if CAPTURES:
            inputs = self._shared_prompt.add_rows(inputs, *model)
        return super().compute_ref_log_probs(*model, inputs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Return the data set with reference log-probs; unchanged if it has both columns.

        Existing columns are assumed to come from this reference model on these texts. Otherwise the
        log-probs are computed, or read from `reference_cache`.

        Raises:
            ValueError: If a log-prob is not a finite number of 0 or below, or if only one of the
                two columns exists.
        """
        present = [column for column in REFERENCE if column in column_names(dataset)]
        if not present:
            if not CAPTURES:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            # Not TRL's method, even without a cache: TRL 1.16 can read log-probs of other settings
            # from its own cache, and fails on two processes if the data set is in memory.
            return add_log_probs(self, dataset, name, batch_size)
        if len(present) < len(REFERENCE):
            (other,) = set(REFERENCE) - set(present)
            raise ValueError(
                f"the {name} data set has {present[0]} but not {other}: provide both or neither"
            )
        for column in REFERENCE if isinstance(dataset, Dataset) else ():
            check_log_probs(column, column_values(dataset, column), f"the {name} data set")
        logger.info(f"the {name} data set has reference log-probs: none are computed")
        return dataset

    @property
    def _shared_prompt(self) -> SharedPrompt:
        # Not in the constructor: TRL's own may already compute reference log-probs.
        if self._sharing is None:
            self._sharing = SharedPrompt(self)
        return self._sharing

    def _reference(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        if self.precompute_ref_logps:
            return {name: inputs[name] for name in REFERENCE}
        # No argument at all for TRL 1.0, see REFERENCE_IS_GIVEN.
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
        """Return TRL's loss, a scalar, with the betas of the batch in place of the global beta.

        The reference log-probs are computed first and passed to TRL as precomputed ones, because
        D_i cannot be recovered from TRL's mean of beta_i * D_i. This does not need an additional
        forward pass.
        """
        settings = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        inputs = dict(inputs)  # the caller's batch keeps its columns
        category = inputs.pop(CATEGORY, None)
        if CAPTURES:
            reference_models = [] if self.precompute_ref_logps else [self.ref_model]
            models = [model, *(other for other in reference_models if other is not None)]
            inputs = self._shared_prompt.add_rows(inputs, *models)
        # Stock DPO needs TRL's own loss alone, unless its pairs have categories to report on.
        reports = category is not None and self._has_pair_losses
        if not self.args.pair_columns and not self.args.needs_pair_losses and not reports:
            result = super().compute_loss(model, inputs, **settings)
            # With one beta for all pairs, the mean reward margin is beta times the mean of D.
            metrics["margins/unscaled"].append(metrics["rewards/margins"][-1] / self.beta)
            return self._check_finite(result, mode)
        lost = [name for name in self.args.pair_columns if name not in inputs]
        if lost:
            raise ValueError(
                f"a batch has no {lost[0]}: a data_collator set after the constructor, or a"
                f" get_*_dataloader of {type(self).__name__}, leaves the column out"
            )
        # TRL passes every key that it does not know to the model's forward.
        columns = {name: inputs.pop(name) for name in self.args.pair_columns}
        reference = self._reference(inputs)
        inputs |= reference
        global_beta: Any = self.beta
        stock = global_beta, self.precompute_ref_logps
        recorder = OutputRecorder(model)
        # TRL reads self.beta once per formula and broadcasts, so a proxy can replace the number.
        self.beta = BetaProxy(columns["beta"]) if "beta" in columns else self.beta
        self.precompute_ref_logps = True
        try:
            result = super().compute_loss(recorder, inputs, **settings)
        finally:
            self.beta, self.precompute_ref_logps = stock
        # D from the log-probs: TRL's rewards are multiplied by the betas before their mean.
        ref_margin = reference["ref_chosen_logps"] - reference["ref_rejected_logps"]
        margin = metrics["logps/chosen"][-1] - metrics["logps/rejected"][-1]
        gathered: Any = self.accelerator.gather(ref_margin)
        metrics["margins/unscaled"].append(margin - gathered.mean().item())
        if "beta" in columns:
            betas = self.accelerator.gather(columns["beta"])
            for statistic in ("mean", "min", "max"):
                metrics[f"beta/{statistic}"].append(getattr(betas, statistic)().item())
        if not self._has_pair_losses:
            return self._check_finite(result, mode)
        batch = make_batch(
            recorder.output, inputs, columns, beta=global_beta,
            label_smoothing=self.args.label_smoothing, ld_alpha=self.ld_alpha,
            use_weighting=self.use_weighting,
        )  # fmt: skip
        if self.args.needs_pair_losses:
            loss = result[0] if return_outputs else result
            # The auxiliary loss that TRL adds for mixtures of experts is not a sum over pairs.
            router = (
                self.router_aux_loss_coef * recorder.output.aux_loss if self.aux_loss_enabled else 0
            )
            if self._guarded[mode] % GUARD_EVERY == 0:
                self._check_finite(result, mode)
                theirs = (loss - router).item()
                smoothing = self.args.label_smoothing
                check_against_trl(theirs, batch, self._mixture, label_smoothing=smoothing)
            self._guarded[mode] += 1
            # An evaluation neither selects pairs nor changes the running moments.
            if mode == "train":
                batch = apply_online_variants(
                    batch, self.args, self.accelerator, state=self._state, metrics=metrics
                )
            ours = batch.losses(self._mixture).mean() + router
            result = (ours, *result[1:]) if return_outputs else ours
        self._check_finite(result, mode)
        self._add_gradients(batch, category, mode)
        return result

    def _check_finite(self, result: Any, mode: str) -> Any:
        """Return the result of `compute_loss`, checked by `batch.check_finite`."""
        step = self.state.global_step
        when = f"of step {step + 1}" if mode == "train" else f"of the evaluation after step {step}"
        check_finite(
            (result[0] if isinstance(result, tuple) else result).item(), when,
            margin=self._metrics[mode]["margins/unscaled"][-1], loss_types=self.loss_types,
        )  # fmt: skip
        return result

    @property
    def _has_pair_losses(self) -> bool:
        """Whether the loss can be computed pair by pair; if not, only TRL's mean is available."""
        return CAPTURES and all(name in LOSSES or name == SFT for name in self.loss_types)

    @property
    def _mixture(self) -> Mixture:
        return Mixture(
            names=self.loss_types, shares=self.loss_weights, tau=self.args.discopop_tau,
            divergence=self.f_divergence_type, divergence_coefficient=self.f_alpha_divergence_coef,
        )  # fmt: skip

    def _state(self, kind: type[Any]) -> Any:
        """Return the state of an online variant, looked up because resuming replaces callbacks."""
        return next(state for state in self.callback_handler.callbacks if type(state) is kind)

    def _add_gradients(self, batch: PairBatch, category: torch.Tensor | None, mode: str) -> None:
        """Add a batch to the gradient metrics, unless no loss of the mixture compares responses."""
        if not self._mixture.preferences.names:
            return
        number = torch.full_like(batch.beta, -1.0) if category is None else category
        per_token = "sigmoid_norm" in self.loss_types
        margin = batch.ratios.average if per_token else batch.ratios.difference
        # One table, so that the processes communicate once per batch instead of five times.
        rows = torch.stack(
            [  # in double precision, except on Apple's GPUs
                batch.beta,
                margin.detach(),
                batch.weight,
                batch.factor.to(batch.beta.dtype),
                batch.slopes(self._mixture),
                number.to(batch.beta.device),
            ],
            dim=1,
        )
        gathered: Any = self.accelerator.gather(rows)
        beta, margin, weight, factor, slope, number = gathered.cpu().double().T
        self._gradients[mode].add(
            beta=beta, margin=margin, weight=weight, factor=factor, slope=slope, category=number
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as DPOTrainer does, with the gradient metrics since the last log added."""
        # TRL logs the mean over batches of each list; these numbers already cover all batches.
        mode = "train" if self.model.training else "eval"
        for name, value in self._gradients[mode].metrics().items():
            self._metrics[mode][name] = [value]
        self._gradients[mode].clear()
        super().log(logs, start_time)


# TRL 1.0 calls compute_ref_log_probs with one argument, later versions with two.
class PairDPOTrainer(PairColumnsMixin, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """DPOTrainer with one beta per pair; see PairColumnsMixin."""

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

    def _read_args(self, settings: Mapping[str, Any]) -> PairDPOConfig:
        args = super()._read_args(settings)
        if isinstance(args, PairDPOConfig) and "beta" not in args.pair_columns:
            # Without a beta per pair this is not SP2DPO, so keep TRL's model card and tags.
            for name in ("_tag_names", "_name", "_paper"):
                setattr(self, name, getattr(DPOTrainer, name))
        return args
