"""Requests as files, for batch services and for people; `inbox` takes their replies.

The files are those of OpenAI's Batch API, which `vllm run-batch` reads too: a line of JSON for each
request. What is asked is the same as over HTTP, to the byte.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

from sp2dpo.files import atomic_write, check_overwrite
from sp2dpo.inference.client import request_body
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.panel.annotation import Key
from sp2dpo.panel.panel import Panel
from sp2dpo.store.questions import QuestionPlan
from sp2dpo.store.store import Store
from sp2dpo.text import canonical_json

_PAGE = 500
"""Pairs read from the store at a time."""


class CustomIds:
    """The names of a panel's requests: the pair's id, and a hash of everything else in the key.

    The hash covers the rubric and the teacher's model, revision and sampling as well, so that no
    reply is filed under what was not asked.
    """

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._rubric = panel.rubric.hash
        self._teachers = {teacher.name: teacher for teacher in panel.teachers}
        self._hashes: dict[tuple[str, str, str, int], str] = {}

    def of(self, key: Key) -> str:
        """The `custom_id` of a request: 57 characters; services allow 64."""
        return f"{key.pair_id[:40]}.{self._hash(key.teacher, key.variant, key.order, key.attempt)}"

    def meant(self, attempts: int) -> dict[str, tuple[str, str, str, int]]:
        """Hash -> (teacher, variant, order, attempt), for attempts below a number."""
        panel = self._panel
        orders = panel.rubric.orders("0")
        known = product(self._teachers, panel.variants, orders, range(attempts))
        return {self._hash(*one): one for one in known}

    def _hash(self, teacher: str, variant: str, order: str, attempt: int) -> str:
        asked = (teacher, variant, order, attempt)
        if asked not in self._hashes:
            who = self._teachers[teacher]
            said = [*asked, who.model, who.revision, who.sampling, self._rubric]
            self._hashes[asked] = hashlib.sha256(canonical_json(said).encode()).hexdigest()[:16]
        return self._hashes[asked]


@dataclass(frozen=True, kw_only=True)
class ExportCounts:
    """What was written for one teacher.

    Attributes:
        teacher: its name.
        requests: lines of all files.
        files: in order; none where nothing is missing.
        leftover: files of earlier exports under names of this one; they are not part of it.
    """

    teacher: str
    requests: int
    files: tuple[Path, ...]
    leftover: tuple[Path, ...]


def export_requests(
    store: Store,
    panel: Panel,
    out: Path,
    *,
    teacher: str | None = None,
    again: bool = False,
    per_file: int | None = None,
) -> list[ExportCounts]:
    """Writes what the store is missing as requests, a file for each teacher.

    A file is called `out`; of several teachers `out` with `-TEACHER` before its ending, of several
    files of a teacher with `-0001` behind that. Each appears whole or not at all. Lines go pair by
    pair, the orders of a pair one after the other, its variants side by side: as prefix caches
    like it.

    Args:
        store: the panel's; it has been adopted.
        panel: whom to ask what.
        out: where to.
        teacher: the only one to export; None for all.
        again: whether all that was refused counts as missing.
        per_file: requests in one file at most (OpenAI takes 50,000, and 200 MB); None for any.

    Raises:
        ValueError: the panel's budget is adaptive, no teacher is called so, two teachers' files
            would have one name, or something else than requests stands in the way.
        OSError: there is no such folder, or it cannot be written to.
    """
    if panel.budget == "adaptive":
        raise ValueError(
            "a panel with `budget: adaptive` decides from reply to reply what it asks; a file asks "
            "all at once: say `budget: full`"
        )
    named = {one.name: one for one in panel.teachers}
    if teacher is not None and teacher not in named:
        raise ValueError(f"no teacher is called {teacher!r} (the panel's: {', '.join(named)})")
    stems = _stems(out, list(named))
    chosen = [named[teacher]] if teacher is not None else list(panel.teachers)
    if len(chosen) == 1:
        stems[chosen[0].name] = out.stem
    ids = CustomIds(panel)
    return [
        _write(
            one.name,
            _lines(store, panel, one, ids, again=again),
            out.with_name(stems[one.name] + out.suffix),
            per_file,
        )
        for one in chosen
    ]


def _stems(out: Path, teachers: list[str]) -> dict[str, str]:
    stems = {name: f"{out.stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" for name in teachers}
    for one, other in product(teachers, teachers):
        if one < other and stems[one] == stems[other]:
            raise ValueError(
                f"teachers {one!r} and {other!r} would both be written to {stems[one]}{out.suffix};"
                " export them one by one with --teacher"
            )
    return stems


def _lines(
    store: Store, panel: Panel, teacher: Endpoint, ids: CustomIds, *, again: bool
) -> Iterator[bytes]:
    schema = panel.rubric.schema()
    wanted = QuestionPlan.from_panel(panel, teacher, again=again)
    after = 0
    while jobs := store.questions.next_jobs(wanted, after=after, limit=_PAGE):
        after = jobs[-1].number
        for job in jobs:
            for question in job.questions:
                key = question.key
                messages = panel.rubric.messages(job.pair, key.variant, key.order)
                request = {
                    "custom_id": ids.of(key),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": request_body(teacher, messages, schema, key.attempt),
                }
                yield json.dumps(request).encode() + b"\n"


def _write(teacher: str, lines: Iterator[bytes], path: Path, per_file: int | None) -> ExportCounts:
    files, count = [], 0
    for first in lines:
        name = path.with_stem(f"{path.stem}-{len(files) + 1:04d}") if per_file else path
        check_overwrite(name, is_requests, "a file of requests")
        with atomic_write(name) as unfinished, unfinished.open("wb") as sink:
            for line in chain([first], islice(lines, per_file and per_file - 1)):
                count += sink.write(line) > 0
        files.append(name)
    numbered = path.parent.glob(f"{_literal(path.stem)}-[0-9][0-9][0-9][0-9]{path.suffix}")
    there = {path, *numbered} if path.exists() else set(numbered)
    return ExportCounts(
        teacher=teacher,
        requests=count,
        files=tuple(files),
        leftover=tuple(sorted(one for one in there - set(files) if is_requests(one))),
    )


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def is_requests(path: Path) -> bool:
    """Whether a file holds requests of ours."""
    if not path.is_file():
        return False
    with path.open("rb") as source:
        return source.read(16).startswith(b'{"custom_id": ')
