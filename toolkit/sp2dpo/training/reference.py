"""Cache the reference model's log-probs of every pair, keyed by everything that they depend on.

The runs of a sweep over schedules train on the same texts with the same reference; only the betas
differ. A run reads the log-probs that earlier runs computed, pair by pair, so it may leave out or
flip other pairs than they did.
"""

import hashlib
import importlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from sp2dpo.replacement import atomic_write

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""The columns in which TRL stores reference log-probs."""
LogProbs = tuple[float, float]
"""Log-probs of the chosen and of the rejected response of a pair, in nats."""
PAIRS_PER_FILE = 4096
"""Number of pairs in a file, and so the most that a killed run has to compute again."""
SCHEMA = pa.schema({"pair": pa.string()} | dict.fromkeys(REFERENCE, pa.float32()))

logger = get_logger(__name__)


class LogProbCache:
    """A cache of log-probs in Parquet files, in one subfolder for each set of dependencies.

    A file is written atomically and never changed, so that several runs can write at once. A file
    that cannot be read is ignored with a warning, and its log-probs are computed again.

    Args:
        folder: Folder with all caches; created if it does not exist.
        depends: Everything that the log-probs depend on besides the tokens, such as weights,
            settings and versions.
    """

    def __init__(self, folder: Path, depends: Mapping[str, Any]) -> None:
        self._depends = json.dumps(depends, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(self._depends.encode()).hexdigest()[:32]

    def read(self) -> dict[str, LogProbs]:
        """Return the log-probs by pair key."""
        log_probs: dict[str, LogProbs] = {}
        # In a fixed order, because two runs may have computed a pair with other last bits.
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                columns = pq.read_table(path.absolute(), schema=SCHEMA).to_pydict()
            except (OSError, pa.ArrowException) as error:
                logger.warning(f"{path} cannot be read and is ignored: {error}")
                continue
            pairs = zip(*(columns[name] for name in REFERENCE), strict=True)
            log_probs.update(zip(columns["pair"], pairs, strict=True))
        return log_probs

    def write(self, new: Mapping[str, LogProbs]) -> None:
        """Add log-probs by pair key, as one new file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # For people: the program recognises the dependencies by the name of the folder.
        with atomic_write(self.folder / "depends.json") as path:
            path.write_text(self._depends, encoding="utf-8")
        chosen, rejected = zip(*new.values(), strict=True)
        table = pa.table(
            dict(zip(SCHEMA.names, (list(new), chosen, rejected), strict=True)), SCHEMA
        )
        with atomic_write(self.folder / f"{uuid.uuid4().hex}.parquet") as path:
            pq.write_table(table, path.absolute())


def add_log_probs(trainer: Any, dataset: Dataset, name: str, batch_size: int) -> Dataset:
    """Return the data set with the columns REFERENCE, in nats, float32.

    Each process computes a part of the pairs that are not cached, and receives the results of the
    other processes. The batch in which a pair is computed can change the last bits of the result,
    but is not part of the key.

    Args:
        trainer: A DPOTrainer of TRL 1.16 or later, with PairDPOConfig; its model is not trained.
        dataset: The data set, tokenised by that trainer.
        name: Name of the data set in messages.
        batch_size: Pairs per step on each process.
    """
    keys = pair_keys(*(dataset[side][:] for side in ("prompt_ids", "chosen_ids", "rejected_ids")))
    folder = trainer.args.reference_cache
    cache = LogProbCache(Path(folder), _dependencies(trainer)) if folder else None
    main = trainer.accelerator.is_main_process
    cached = cache.read() if cache and main else {}
    # The main process reads for all: processes that saw different files would compute different
    # rows, and wait for each other forever.
    # Only the pairs of this data set are sent: the cache may hold those of many others.
    shared: list[Any] = [{key: cached[key] for key in set(keys) & cached.keys()}]
    broadcast_object_list(shared, from_process=0)
    log_probs = shared[0]
    rows = [row for row, key in enumerate(keys) if key not in log_probs]
    if cache:
        logger.info(
            f"the {name} data set: reference log-probs of {len(keys) - len(rows)} of {len(keys)}"
            f" pairs are in {folder}"
        )
    title = f"Reference log-probs of the {name} data set"
    with tqdm(desc=title, total=len(rows), disable=trainer.args.disable_tqdm or not main) as bar:
        for first in range(0, len(rows), PAIRS_PER_FILE):
            part = rows[first : first + PAIRS_PER_FILE]
            values = _compute(trainer, dataset.select(part), batch_size, bar)
            new = {keys[row]: pair for row, pair in zip(part, values, strict=True)}
            if cache and main:
                cache.write(new)
            log_probs |= new
    for column, values in zip(
        REFERENCE, zip(*map(log_probs.__getitem__, keys), strict=True), strict=True
    ):
        dataset = dataset.add_column(column, list(values))
    return dataset


def _dependencies(trainer: Any) -> dict[str, Any]:
    """Return everything that the log-probs depend on besides the tokens."""
    model, args = trainer.ref_model or trainer.model, trainer.args
    # Names that begin with an underscore say where the model is from and how it runs.
    config = {name: value for name, value in model.config.to_dict().items() if name[0] != "_"}
    return {
        "weights": weights_digest(model),
        # Settings without weights, such as the scaling of positions, change the log-probs too.
        "config": config,
        "attention": getattr(model.config, "_attn_implementation", None),
        # All other adapters are switched off while the reference is computed.
        "adapters": {
            n: c.to_dict() for n, c in getattr(model, "peft_config", {}).items() if n == "ref"
        },
        "precision": [str(model.dtype), args.bf16, args.fp16, args.tf32],
        "mixed_precision": trainer.accelerator.mixed_precision,
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "ld_alpha": args.ld_alpha,
        # The last bits differ, and `shared_prompt: false` means TRL's own bits.
        "shared_prompt": args.shared_prompt,
        "device": trainer.accelerator.device.type,
        "versions": [torch.__version__, transformers.__version__, trl.__version__],
    }


def _compute(trainer: Any, dataset: Dataset, batch_size: int, bar: tqdm) -> list[LogProbs]:
    """Return the log-probs of all pairs, in order, on every process."""
    accelerator, args = trainer.accelerator, trainer.args
    model = trainer.ref_model or trainer.model
    if trainer.ref_model is None and trainer.is_deepspeed_enabled:
        # As in TRL: before training, DeepSpeed has either not placed the parameters on the device
        # yet or has sharded them.
        if trainer._precompute_engine is None:
            trainer._precompute_engine = prepare_deepspeed(trainer.model, accelerator)
        model = trainer._precompute_engine
    # Not shuffled: the results are matched with the rows by their order.
    batches = accelerator.prepare(
        DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]
            batch_size=batch_size,
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
    )
    log_probs: list[LogProbs] = []
    for batch in batches:
        # `gather_for_metrics` removes the rows that fill up the last batch on several processes.
        sides = accelerator.gather_for_metrics(trainer.compute_ref_log_probs(model, batch))
        log_probs += zip(*(side.float().tolist() for side in sides), strict=True)
        bar.update(len(sides[0]))
    return log_probs


def pair_keys(
    prompts: Iterable[Sequence[int]],
    chosen: Iterable[Sequence[int]],
    rejected: Iterable[Sequence[int]],
) -> list[str]:
    """Return a key for the tokens of each pair; exchanging the responses changes the key."""
    return [
        hashlib.sha256(json.dumps([list(ids) for ids in triple]).encode()).hexdigest()
        for triple in zip(prompts, chosen, rejected, strict=True)
    ]


def weights_digest(model: Any) -> str:
    """Return a SHA-256 of all weights of the reference of a model.

    Persistent buffers are weights, too: quantised layers keep theirs there. Weights that ZeRO-3 or
    a device mesh shards are gathered one at a time, so all processes have to call this function. An
    adapter that is trained is not part of the reference; one named "ref" is.
    """
    trained = [name for name in getattr(model, "peft_config", {}) if name != "ref"]
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *_persistent_buffers(model)):
        # PEFT names a parameter `...lora_A.ADAPTER.weight`.
        if any(adapter in name.split(".") for adapter in trained):
            continue
        with _gathered(tensor):
            value = tensor.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # As bytes, because numpy has no bfloat16.
            # `reshape`, because torch refuses to view a scalar as bytes.
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _persistent_buffers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the buffers that are saved with the weights, with their names."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _gathered(parameter: Any) -> Any:
    """Return a context in which a parameter that ZeRO-3 has sharded is complete."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    deepspeed = importlib.import_module("deepspeed")  # an extra, and slow to load
    return deepspeed.zero.GatheredParameters([parameter])
