"""The reference's log-probs of every pair: computed once, kept in a folder, never a stale one.

A sweep over schedules trains on the same texts with the same reference: only the betas differ. What
one run computed the next one reads, pair by pair, whichever pairs it leaves out or flips.
"""

import hashlib
import importlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import trl
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl.models import prepare_deepspeed

__all__ = ["REFERENCE", "KeptLogProbs", "add_log_probs", "pair_keys", "weights_digest"]

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""TRL's columns of reference log-probs."""
# A pair's log-probs of the chosen and of the rejected response, in nats.
LogProbs = tuple[float, float]
KEPT_AT_ONCE = 4096
"""Pairs after which what was computed is kept: a run that is killed loses no more."""
SCHEMA = pa.schema({"pair": pa.string()} | dict.fromkeys(REFERENCE, pa.float32()))

logger = get_logger(__name__)


class KeptLogProbs:
    """Log-probs in a folder of Parquet files, one folder for all that they depend on.

    A file is written whole and never changed, so that several runs may write at once; a file that
    cannot be read is passed over with a warning, and what it held is computed again.

    Args:
        folder: Of all caches; it is made at need.
        depends: All that the log-probs depend on besides the tokens: weights, settings, versions.
    """

    def __init__(self, folder: Path, depends: Mapping[str, Any]) -> None:
        said = json.dumps(depends, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(said.encode()).hexdigest()[:32]
        self._said = said

    def read(self) -> dict[str, LogProbs]:
        """Return the log-probs by pair key."""
        kept: dict[str, LogProbs] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                columns = pq.read_table(path, schema=SCHEMA).to_pydict()
            except (OSError, pa.ArrowException) as error:
                logger.warning(f"{path} cannot be read and is passed over: {error}")
                continue
            pairs = zip(*(columns[name] for name in REFERENCE), strict=True)
            kept.update(zip(columns["pair"], pairs, strict=True))
        return kept

    def write(self, new: Mapping[str, LogProbs]) -> None:
        """Add log-probs, complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "depends.json").write_text(self._said, encoding="utf-8")
        chosen, rejected = zip(*new.values(), strict=True)
        table = pa.table(
            dict(zip(SCHEMA.names, (list(new), chosen, rejected), strict=True)), SCHEMA
        )
        unfinished = self.folder / f"{uuid.uuid4().hex}.tmp"
        pq.write_table(table, unfinished)
        unfinished.replace(unfinished.with_suffix(".parquet"))


def add_log_probs(trainer: Any, dataset: Dataset, name: str, batch_size: int) -> Dataset:
    """Return the data set with the columns REFERENCE, in nats, float32.

    Every process computes a part of what no cache has, and gets all of it from the others. The
    batches in which a pair is computed are no part of its key: with others its log-probs may differ
    in the last bits.

    Args:
        trainer: A DPOTrainer of TRL 1.16 or later, with PairDPOConfig, its model not yet trained.
        dataset: Tokenised by that trainer.
        name: Names the data set in messages.
        batch_size: Pairs of a step on each process.
    """
    keys = pair_keys(*(dataset[side][:] for side in ("prompt_ids", "chosen_ids", "rejected_ids")))
    folder = trainer.args.reference_cache
    cache = KeptLogProbs(Path(folder), _depends(trainer)) if folder else None
    main = trainer.accelerator.is_main_process
    there = cache.read() if cache and main else {}
    shared: list[Any] = [{key: there[key] for key in set(keys) & there.keys()}]
    broadcast_object_list(shared, from_process=0)
    kept = shared[0]
    rows = [row for row, key in enumerate(keys) if key not in kept]
    if cache:
        logger.info(
            f"the {name} data set: reference log-probs of {len(keys) - len(rows)} of {len(keys)}"
            f" pairs are in {folder}"
        )
    shown = f"Reference log-probs of the {name} data set"
    with tqdm(desc=shown, total=len(rows), disable=trainer.args.disable_tqdm or not main) as bar:
        for first in range(0, len(rows), KEPT_AT_ONCE):
            part = rows[first : first + KEPT_AT_ONCE]
            found = _compute(trainer, dataset.select(part), batch_size, bar)
            new = {keys[row]: pair for row, pair in zip(part, found, strict=True)}
            if cache and main:
                cache.write(new)
            kept |= new
    for column, values in zip(
        REFERENCE, zip(*map(kept.__getitem__, keys), strict=True), strict=True
    ):
        dataset = dataset.add_column(column, list(values))
    return dataset


def _depends(trainer: Any) -> dict[str, Any]:
    """All that the log-probs depend on besides the tokens."""
    model, args = trainer.ref_model or trainer.model, trainer.args
    config = {name: value for name, value in model.config.to_dict().items() if name[0] != "_"}
    return {
        "weights": weights_digest(model),
        "config": config,
        "attention": getattr(model.config, "_attn_implementation", None),
        "adapters": {
            n: c.to_dict() for n, c in getattr(model, "peft_config", {}).items() if n == "ref"
        },
        "precision": [str(model.dtype), args.bf16, args.fp16, args.tf32],
        "mixed_precision": trainer.accelerator.mixed_precision,
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "ld_alpha": args.ld_alpha,
        "device": trainer.accelerator.device.type,
        "versions": [torch.__version__, transformers.__version__, trl.__version__],
    }


def _compute(trainer: Any, dataset: Dataset, batch_size: int, bar: tqdm) -> list[LogProbs]:
    """The log-probs of all pairs, in order, on every process."""
    accelerator, args = trainer.accelerator, trainer.args
    model = trainer.ref_model or trainer.model
    if trainer.ref_model is None and trainer.is_deepspeed_enabled:
        # As TRL does: before training DeepSpeed has placed no parameters, or has shared them out.
        if trainer._precompute_engine is None:
            trainer._precompute_engine = prepare_deepspeed(trainer.model, accelerator)
        model = trainer._precompute_engine
    batches = accelerator.prepare(
        DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]
            batch_size=batch_size,
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
    )
    found: list[LogProbs] = []
    for batch in batches:
        sides = accelerator.gather_for_metrics(trainer.compute_ref_log_probs(model, batch))
        found += zip(*(side.float().tolist() for side in sides), strict=True)
        bar.update(len(sides[0]))
    return found


def pair_keys(
    prompts: Iterable[Sequence[int]],
    chosen: Iterable[Sequence[int]],
    rejected: Iterable[Sequence[int]],
) -> list[str]:
    """Return a key for each pair's tokens; a pair with its responses exchanged has another one."""
    return [
        hashlib.sha256(json.dumps([list(ids) for ids in triple]).encode()).hexdigest()
        for triple in zip(prompts, chosen, rejected, strict=True)
    ]


def weights_digest(model: Any) -> str:
    """Return a SHA-256 of all weights that the reference of a model has.

    Weights that ZeRO-3 or a device mesh shares between processes are gathered one at a time: all
    processes have to call it. Adapters that are trained are no part of a reference; one named
    "ref" is.
    """
    trained = [name for name in getattr(model, "peft_config", {}) if name != "ref"]
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if any(adapter in name.split(".") for adapter in trained):
            continue
        with _whole(parameter):
            value = parameter.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _whole(parameter: Any) -> Any:
    """A context in which a parameter that ZeRO-3 has shared out is there as a whole."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    deepspeed = importlib.import_module("deepspeed")  # an extra, and slow to load
    return deepspeed.zero.GatheredParameters([parameter])
