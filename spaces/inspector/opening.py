"""Open a data set in a process of its own, whose memory, time and files have limits.

Reading what strangers wrote can take any amount of memory, never end, or end the process. In a
process of its own, it harms no visitor of the page. That process downloads, checks and unpacks the
data set into a folder; this module also reads that folder as a `Dataset`. Its input is one line of
JSON, the fields of `Job`; its output is a line for each step, then `{"error": ...}` or `{}`.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dataset import Dataset
from documents import MAX_WORDS
from download import download
from errors import UnusableDataset
from loader import REPLIES, TEXTS, open_folder
from query import Field
from tables import Meter, open_mapped

# Windows has no limits of this kind.
resource: Any = importlib.import_module("resource") if os.name == "posix" else None
_LISTED = "listed"
"""Line that the process writes when it knows what it will download."""
_ARRAYS, _REST = "arrays.npz", "dataset.json"
_LONGEST_LINE = 10_000
_FOR_VISITORS = " for data sets that visitors name: duplicate the Space, or run it yourself"
_LARGEST_RATIO, _SMALL = 200, 500_000_000
"""Rows may unpack to this multiple of the size of their files, plus `_SMALL` bytes for small ones:
real texts are compressed to a tenth of their size, seldom less."""
_MEMORY_RATIO = 10
"""Opening the Space's own data set may take this multiple of the size of its files in memory, in
addition to what visitors' data sets may take."""
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")


@dataclass(frozen=True)
class Limits:
    """Limits for data sets that visitors name.

    Attributes:
        packed: Largest size of all files, in bytes.
        unpacked: Largest size of all rows in memory, in bytes. The uncompressed copies on the
            disk, in which each text stands twice, take at most twice as much.
        rows: Largest number of rows in all configs.
        memory: Memory of the process that opens a data set, in bytes (Linux only).
        lookup_seconds: Time until the Hub has answered what a data set consists of.
        seconds: Time for the download and for opening the files.
        open: Largest number of data sets that stay open, in addition to the Space's own.
        at_once: Largest number of data sets that are being opened.
        waiting: Largest number of data sets that wait to be opened.
        retry_seconds: Time for which a failure is remembered.
    """

    packed: int = 500_000_000
    unpacked: int = 2_000_000_000
    rows: int = 3_000_000
    memory: int = 3_000_000_000
    lookup_seconds: float = 20
    seconds: float = 300
    open: int = 3
    at_once: int = 2
    waiting: int = 8
    retry_seconds: float = 60


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process opens.

    Attributes:
        name: Name to show, and to begin error messages with.
        source: Folder, or name on the Hub.
        is_folder: Whether the source is a folder.
        scratch: Empty folder for its files.
        limits: Limits, for what a visitor named; None for the Space's own data set.
    """

    name: str
    source: str
    is_folder: bool
    scratch: str
    limits: Limits | None


def open_dataset(job: Job) -> Dataset:
    """Open a data set in another process, and return it.

    Raises:
        UnusableDataset: It cannot be opened, or is beyond a limit.
    """
    with subprocess.Popen(
        [sys.executable, Path(__file__).name],
        cwd=Path(__file__).parent,
        env=_environment(job),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        answer = _converse(process, job)
    problem = answer.get("error")
    if problem is not None:
        raise UnusableDataset(str(problem)[:MAX_WORDS])
    return _load(Path(job.scratch))


def _environment(job: Job) -> dict[str, str]:
    environment = dict(os.environ)
    if job.limits is not None:
        for name in _TOKENS:
            environment.pop(name, None)
        environment |= {
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            # Also the locks and caches of the Hub's client end with the scratch folder, and Xet's
            # cache would outgrow the limits.
            "HF_HOME": str(Path(job.scratch) / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    return environment


def _converse(process: subprocess.Popen[str], job: Job) -> Mapping[str, Any]:
    """Give a process its job, and return its last line; end it when its time is over."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process has no pipes")
    limits, line, is_late = job.limits, "", threading.Event()
    timer: threading.Timer | None = None

    def end() -> None:
        is_late.set()
        process.kill()

    def allow(seconds: float) -> threading.Timer:
        if timer is not None:
            timer.cancel()
        started = threading.Timer(seconds, end)
        started.daemon = True
        started.start()
        return started

    try:
        if limits is not None:
            timer = allow(limits.lookup_seconds)
        process.stdin.write(json.dumps(asdict(job)) + "\n")
        process.stdin.flush()
        # The other end watches this pipe, and ends when it is closed: it never outlives the server.
        while line := process.stdout.readline(_LONGEST_LINE):
            if line.strip() != _LISTED:
                break
            if limits is not None:
                timer = allow(limits.seconds)
    except BrokenPipeError:
        line = ""
    finally:
        if timer is not None:
            timer.cancel()
        process.kill()
    if line.endswith("\n"):
        return json.loads(line)
    if is_late.is_set():
        return {"error": f"{job.name}: opening it takes too long: the Hub is slow, or it is large"}
    return {"error": f"{job.name}: its files are damaged so that reading them ended the reader"}


def _load(scratch: Path) -> Dataset:
    """Return the data set that another process has unpacked."""
    rest = json.loads((scratch / _REST).read_text("utf-8"))
    with np.load(scratch / _ARRAYS, allow_pickle=False) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    texts = open_mapped(scratch / TEXTS)
    ids = texts["pair_id"].to_pylist()
    fields = {
        name: Field(kind, ids if kind == "id" else values[f"field {name}"], levels)
        for name, (kind, levels) in rest["fields"].items()
    }
    return Dataset(
        **rest["plain"],
        ids=ids,
        fields=fields,
        schedules={name: values[f"schedule {name}"] for name in rest["schedules"]},
        texts=texts,
        replies=open_mapped(scratch / REPLIES),
        reply_rows=values["reply_rows"],
        starts=values["starts"],
        scores={name: values[f"score {name}"] for name in rest["scores"]}
        | {"slots": rest["slots"]},
    )


def _save(dataset: Dataset, scratch: Path) -> None:
    """Write what `_load` reads; the texts and replies are there already."""
    arrays = {
        f"field {name}": field.values
        for name, field in dataset.fields.items()
        if field.kind != "id"
    }
    arrays |= {f"schedule {name}": values for name, values in dataset.schedules.items()}
    scores = {name: values for name, values in dataset.scores.items() if name != "slots"}
    arrays |= {f"score {name}": values for name, values in scores.items()}
    np.savez(
        scratch / _ARRAYS,
        allow_pickle=False,
        reply_rows=dataset.reply_rows,
        starts=dataset.starts,
        **arrays,
    )
    plain = ("name", "commit", "fingerprint", "facts", "rubric", "labels")
    rest = {
        "plain": {name: getattr(dataset, name) for name in plain},
        "fields": {
            name: (field.kind, list(field.levels)) for name, field in dataset.fields.items()
        },
        "schedules": list(dataset.schedules),
        "scores": list(scores),
        "slots": dataset.scores["slots"],
    }
    (scratch / _REST).write_text(json.dumps(rest), "utf-8")


def _limit_process(memory: int, largest_file: int) -> None:
    """Limit the memory of this process, and the size of each file that it writes."""
    if resource is None:
        return
    # Not the address space: a mapped file takes no memory that others could need.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))


def _make_meter(limits: Limits | None, folder: Path) -> Meter:
    """Return a meter for the files in a folder, and limit the process of the own data set."""
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    most = _SMALL + _LARGEST_RATIO * size
    if limits is not None and limits.unpacked <= most:
        return Meter(
            most_rows=limits.rows,
            most_bytes=limits.unpacked,
            rows_advice=_FOR_VISITORS,
            bytes_advice=_FOR_VISITORS,
        )
    if limits is None:
        # The owner, too, may have chosen a data set of strangers.
        _limit_process(Limits().memory + _MEMORY_RATIO * size, 3 * most)
    return Meter(
        most_rows=None if limits is None else limits.rows,
        most_bytes=most,
        rows_advice=_FOR_VISITORS,
        bytes_advice=f" for {size / 1e6:,.1f} MB of files: no real text is so compressible",
    )


def _end_with(pipe: IO[str], scratch: Path) -> None:
    """End this process when the server that started it is gone."""
    pipe.read()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _take_output() -> Callable[[str], None]:
    """Return a function that writes a line to the server; what libraries print goes to the log."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: str) -> None:
        output.write(f"{line}\n")
        output.flush()

    return tell


def _open(job: Job, tell: Callable[[str], None]) -> None:
    scratch, limits = Path(job.scratch), job.limits
    commit, folder = None, Path(job.source)
    if job.is_folder:
        tell(_LISTED)
    else:
        folder = scratch / "files"
        folder.mkdir()
        commit = download(
            job.source,
            folder,
            most=None if limits is None else limits.packed,
            # In `huggingface_hub`, None stands for the token of this process.
            token=None if limits is None else False,
            notify=lambda: tell(_LISTED),
        )
    meter = _make_meter(limits, folder)
    _save(open_folder(folder, scratch, name=job.name, commit=commit, meter=meter), scratch)


def main() -> None:
    """Do the job on the standard input."""
    tell = _take_output()
    values = json.loads(sys.stdin.readline())
    limits = values.pop("limits")
    job = Job(**values, limits=None if limits is None else Limits(**limits))
    watch = threading.Thread(target=_end_with, args=(sys.stdin, Path(job.scratch)), daemon=True)
    watch.start()
    if job.limits is not None:
        # While it downloads; a Hub may send more than it has announced.
        _limit_process(job.limits.memory, 2 * job.limits.unpacked + job.limits.packed)
    answer = {}
    try:
        _open(job, tell)
    except UnusableDataset as error:
        answer = {"error": str(error)}
    tell(json.dumps(answer))
    # Without waiting for the thread, which reads until the server closes the pipe.
    os._exit(0)


if __name__ == "__main__":
    main()
