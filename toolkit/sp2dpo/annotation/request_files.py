"""Write requests to files for batch services and people; `reply_files` reads the replies.

The format is that of OpenAI's Batch API, which `vllm run-batch` reads too: one line of JSON per
request. The request bodies are byte-identical to those sent over HTTP.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

from sp2dpo.annotation.run import do_nothing, open_store_with_pairs
from sp2dpo.annotation.writer import pending_jobs
from sp2dpo.files import check_overwrite
from sp2dpo.inference.client import request_body
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.pairs.reading import PairsFrom
from sp2dpo.pairs.sources import Source
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.replacement import atomic_write
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.counts import ReplyCounts, count_replies
from sp2dpo.store.questions import QuestionPlan, Shard
from sp2dpo.store.reread import reread_replies
from sp2dpo.store.store import Store
from sp2dpo.text import canonical_json


class CustomIds:
    """The `custom_id` of each request: the pair's id, and a hash of the rest of its key.

    The hash also covers the rubric and the teacher's model, revision and sampling, so that a reply
    cannot be stored under a question that was not asked.
    """

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._rubric = panel.rubric.hash
        self._teachers = {teacher.name: teacher for teacher in panel.teachers}
        self._hashes: dict[tuple[str, str, str, int], str] = {}

    def encode(self, key: Key) -> str:
        """Return the `custom_id` of a request: 57 characters; services allow 64."""
        return f"{key.pair_id[:40]}.{self._hash(key.teacher, key.variant, key.order, key.attempt)}"

    def by_hash(self, attempts: int) -> dict[str, tuple[str, str, str, int]]:
        """Return hash -> (teacher, variant, order, attempt), for attempts below a number."""
        panel = self._panel
        # Any id will do: pairs have the same orders, in another sequence.
        orders = panel.rubric.orders("0")
        requests = product(self._teachers, panel.variants, orders, range(attempts))
        return {self._hash(*request): request for request in requests}

    def _hash(self, teacher: str, variant: str, order: str, attempt: int) -> str:
        request = (teacher, variant, order, attempt)
        # Cached, because these few hashes occur in the requests about every pair.
        if request not in self._hashes:
            endpoint = self._teachers[teacher]
            sampling = endpoint.recorded_sampling
            values = [*request, endpoint.model, endpoint.revision, sampling, self._rubric]
            self._hashes[request] = hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]
        return self._hashes[request]


@dataclass(frozen=True, kw_only=True)
class TeacherExport:
    """The request files of one teacher.

    Attributes:
        teacher: Name of the teacher.
        requests: Number of requests in all files.
        files: The files in order; empty if nothing is missing.
        leftover: Files of an earlier export with names of this one; they are not part of it.
    """

    teacher: str
    requests: int
    files: tuple[Path, ...]
    leftover: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Request files, and the state of the store.

    Attributes:
        exports: The files of each exported teacher.
        teachers: What the store holds, for each teacher of the panel.
    """

    exports: tuple[TeacherExport, ...]
    teachers: tuple[ReplyCounts, ...]


def export_requests(
    pairs: Source | str | Path | None,
    panel: Panel | str | Path,
    store: Store | str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    teacher: str | None = None,
    retry_refused: bool = False,
    shard: Shard | str | None = None,
    per_file: int | None = None,
    on_source: Callable[[Corpus], object] = do_nothing,
) -> ExportResult:
    """Write the requests that a store is missing to files of OpenAI's Batch API.

    With one teacher the file is `out`. With several, `-TEACHER` is inserted before the extension;
    with `per_file`, `-0001` and so on after that. Each file is written atomically. The requests of
    a pair follow each other, all variants of one order first, so that prefix caches serve them.

    Args:
        pairs: File or Hub id of the pairs, see `open_source`; None if the store holds them.
        panel: Which teachers are asked what: a loaded panel or its YAML file.
        store: The store: its file, created if it does not exist, or an open store.
        out: Output file.
        columns: Columns of the pairs by role, see `annotate_pairs`.
        pairs_from: Pairs of a row with several scored responses, see `annotate_pairs`.
        teacher: The only teacher to export; None for all.
        retry_refused: Export refused requests once more.
        shard: Export one share of the pairs only: a `Shard`, or "I/N" with I from 0 to N-1.
        per_file: Maximum number of requests in one file (OpenAI accepts 50,000, and 200 MB); None
            for no limit.
        on_source: Called once the pairs are in the store.

    Raises:
        ValueError: If the panel is adaptive or contradicts the store, the teacher is unknown, two
            teachers' files would have the same name, or another file is in the way.
        OSError: If the folder does not exist or cannot be written to.
    """
    if per_file is not None and per_file < 1:
        raise ValueError(f"per_file must be at least 1, not {per_file}")
    panel, out = panel if isinstance(panel, Panel) else load_panel(Path(panel)), Path(out)
    with open_store_with_pairs(
        pairs, panel, store, columns=columns, pairs_from=pairs_from, on_source=on_source
    ) as opened:
        opened.questions.restrict_to_shard(Shard.parse(shard) if isinstance(shard, str) else shard)
        reread_replies(opened)  # what can be read now needs no second request
        # The import recognises the panel by the teachers that are recorded here.
        opened.record_panel(panel)
        paths = _output_files(panel, out, teacher)
        ids = CustomIds(panel)
        exports = [
            _write(
                endpoint.name,
                _lines(opened, panel, endpoint, ids, again=retry_refused),
                paths[endpoint.name],
                per_file,
            )
            for endpoint in panel.teachers
            if endpoint.name in paths
        ]
        return ExportResult(exports=tuple(exports), teachers=tuple(count_replies(opened, panel)))


def _output_files(panel: Panel, out: Path, teacher: str | None) -> dict[str, Path]:
    """Return the file of each teacher to export."""
    if panel.budget == "adaptive":
        raise ValueError(
            "a panel with `budget: adaptive` decides after each reply what it asks next; a file "
            "contains all requests: write `budget: full`"
        )
    names = [endpoint.name for endpoint in panel.teachers]
    if teacher is not None and teacher not in names:
        raise ValueError(f"no teacher is called {teacher!r} (the panel's: {', '.join(names)})")
    stems = _stems(out, names)
    exported = names if teacher is None else [teacher]
    if len(exported) == 1:
        return {exported[0]: out}
    return {name: out.with_name(stems[name] + out.suffix) for name in exported}


def _stems(out: Path, teachers: list[str]) -> dict[str, str]:
    stems = {name: f"{out.stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" for name in teachers}
    for first, second in product(teachers, teachers):
        if first < second and stems[first] == stems[second]:
            raise ValueError(
                f"teachers {first!r} and {second!r} would both be written to "
                f"{stems[first]}{out.suffix}; export them one by one with --teacher"
            )
    return stems


def _lines(
    store: Store, panel: Panel, teacher: Endpoint, ids: CustomIds, *, again: bool
) -> Iterator[bytes]:
    schema = panel.rubric.schema()
    plan = QuestionPlan.from_panel(panel, teacher, again=again)
    for job in pending_jobs(store, plan):
        for question in job.questions:
            key = question.key
            messages = panel.rubric.messages(job.pair, key.variant, key.order)
            request = {
                "custom_id": ids.encode(key),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": request_body(teacher, messages, schema, key.attempt),
            }
            yield json.dumps(request).encode() + b"\n"


def _write(teacher: str, lines: Iterator[bytes], path: Path, per_file: int | None) -> TeacherExport:
    files, count = [], 0
    # A file is created only for a line that exists, so there is none if nothing is missing.
    for first in lines:
        name = path.with_stem(f"{path.stem}-{len(files) + 1:04d}") if per_file else path
        check_overwrite(name, is_requests, "a file of requests")
        with atomic_write(name) as unfinished, unfinished.open("wb") as sink:
            # `first` is already taken. None means no limit, to `per_file` and to `islice`.
            for line in chain([first], islice(lines, per_file and per_file - 1)):
                count += sink.write(line) > 0
        files.append(name)
    numbered = path.parent.glob(f"{_literal(path.stem)}-[0-9][0-9][0-9][0-9]{path.suffix}")
    there = {path, *numbered} if path.exists() else set(numbered)
    return TeacherExport(
        teacher=teacher,
        requests=count,
        files=tuple(files),
        leftover=tuple(sorted(path for path in there - set(files) if is_requests(path))),
    )


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def is_requests(path: Path) -> bool:
    """Whether a file contains exported requests."""
    if not path.is_file():
        return False
    with path.open("rb") as source:
        return source.read(16).startswith(b'{"custom_id": ')
