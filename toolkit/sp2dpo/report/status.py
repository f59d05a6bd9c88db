"""Where a run stands: what was asked, kept, refused and spared, what it took, how long it lasts."""

import fcntl
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from sp2dpo.inference.endpoint import Price
from sp2dpo.store.questions import KeyCount, count_outcomes
from sp2dpo.store.store import Store
from sp2dpo.store.usage import Slice, Usage, recent_usage, sum_usage

_LOCKS = Path("/proc/locks")
_COUNTS = ("asked", "kept", "spared", "pending")


def collect_status(path: Path) -> dict[str, Any]:
    """Everything that `sp2dpo status` says, as JSON values; what is not known is None.

    Args:
        path: of the store.

    Returns:
        store: its path.
        source: its name; None before the pairs were read.
        pairs: distinct ones of the store's share.
        shard: that share, `I/N`; None for all.
        annotating: the number of the process that annotates now; None where none does.
        integrity: what SQLite finds wrong with the file; where it finds something, nothing else
            is told.
        budget: `full` or `adaptive`; None where nothing was annotated yet.
        teachers: of the last panel, each with its name, the counts (asked = kept + refused + spared
            + pending; refused by reason), requests, prompt_tokens, cached_tokens, cached_share,
            completion_tokens, untold (replies without counts of tokens), untimed (replies whose
            time nobody took: imported ones), busy_seconds (while the others were in flight),
            replies_per_second (of the others, over the last ten minutes before the newest, while
            they were in flight), seconds_left, money, money_left, currency; and `cells`: the
            counts and tokens by variant and order.
        total: the same counts and tokens of all teachers; money and money_left by currency, of the
            teachers whose price is known, and `unpriced`, the others; seconds_left_side_by_side
            and seconds_left_in_turn: the longest and the sum of what is left of each.
        outside: replies of teachers and variants that the last panel does not ask.

    Raises:
        ValueError: the file is no store.
        OSError: it is not there.
    """
    with Store(path) as store, store.snapshot():
        problems = store.integrity()
        source = None if problems else store.corpus.source()
        shard = None if problems else store.questions.shard()
        found = {
            "store": str(path),
            "source": source and source.name,
            "pairs": 0 if problems else store.questions.pair_count(),
            "shard": shard and str(shard),
            "annotating": annotating(path),
            "integrity": problems,
            "budget": None,
            "teachers": [],
            "outside": {"replies": 0},
        }
        if not problems and store.teachers():
            found |= _run(store, found["pairs"])
    return found | {"total": _total(found["teachers"])}


def annotating(path: Path) -> int | None:
    """The number of the process that annotates into a store on this computer; None for none."""
    mark = path.with_name(f"{path.name}.lock")
    try:
        with mark.open() as lock:
            pid = int(lock.read())
            return pid if _exists(pid) and _holds(pid, lock) else None
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return pid > 0


def _holds(pid: int, lock: TextIO) -> bool:
    """Whether a process holds the lock: its number may be that of one that ended long ago.

    Looked up in Linux's list of locks, not tried: an `annotate` that starts while somebody tries
    the lock, for however short, is refused. It is tried only where there is no such list, or where
    the list names another file (some file systems have two numbers for one).
    """
    try:
        listed = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return _is_locked(lock)
    files = [
        fields[5].rpartition(":")[2]
        for fields in listed
        if fields[1] == "FLOCK" and fields[4] == str(pid)
    ]
    inode = str(os.fstat(lock.fileno()).st_ino)
    return inode in files or (bool(files) and _is_locked(lock))


def _is_locked(lock: TextIO) -> bool:
    """Whether somebody holds the lock, found out by trying it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _run(store: Store, pairs: int) -> dict[str, Any]:
    panel = store.panel()
    orders = sorted(store.rubric().orders("0"))
    cells = [(variant, order) for variant in panel["variants"] for order in orders]
    adaptive = panel["budget"] == "adaptive"
    heard = store.usage.count_settled() if adaptive else {}
    outcomes, slices = store.questions.outcomes(), store.usage.slices()
    teachers, inside = [], 0
    for teacher in panel["teachers"]:
        name = teacher["name"]
        own = [one for one in slices if one.teacher == name and (one.variant, one.order) in cells]
        said = [one for one in outcomes if one.teacher == name]
        rows = [
            _cell(
                cell,
                asked=pairs,
                final=[one for one in said if one.is_final(teacher["retries"])],
                spared=heard[("", "", "")] - heard.get((name, *cell), 0) if adaptive else 0,
                used=sum_usage(one for one in own if (one.variant, one.order) == cell),
            )
            for cell in cells
        ]
        inside += sum(one.requests for one in own)
        teachers.append(_teacher(teacher, rows, own))
    replies = sum(one.requests for one in slices)
    return {
        "budget": panel["budget"],
        "teachers": teachers,
        "outside": {"replies": replies - inside},
    }


def _cell(
    cell: tuple[str, str], *, asked: int, final: Sequence[KeyCount], spared: int, used: Usage
) -> dict[str, Any]:
    refused = count_outcomes([one for one in final if (one.variant, one.order) == cell])
    kept = refused.pop("kept", 0)
    return {
        "variant": cell[0],
        "order": cell[1],
        "asked": asked,
        "kept": kept,
        "refused": refused,
        "spared": spared,
        "pending": asked - kept - sum(refused.values()) - spared,
        **_tokens(used),
    }


def _tokens(used: Usage) -> dict[str, Any]:
    return {
        "requests": used.requests,
        "untold": used.uncounted,
        "prompt_tokens": used.prompt,
        "cached_tokens": used.cached,
        "cached_share": used.cached_share,
        "completion_tokens": used.completion,
    }


def _teacher(
    teacher: dict[str, Any], cells: list[dict[str, Any]], slices: Sequence[Slice]
) -> dict[str, Any]:
    counts = _counts(cells)
    used, rate = sum_usage(slices), recent_usage(slices).rate
    price = None if teacher["price"] is None else Price(**teacher["price"])
    done = counts["kept"] + sum(counts["refused"].values())
    # A question takes more than one request where replies cannot be read.
    requests_left = counts["pending"] * (used.requests / done if done else 1.0)
    seconds_left = 0.0 if not counts["pending"] else requests_left / rate if rate else None
    return {
        "name": teacher["name"],
        **counts,
        **_tokens(used),
        "untimed": used.untimed,
        "busy_seconds": used.busy,
        "replies_per_second": rate,
        "seconds_left": seconds_left,
        "money": used.cost(price),
        "money_left": _money_left(price, used, requests_left, seconds_left),
        "currency": price and price.currency,
        "cells": cells,
    }


def _money_left(
    price: Price | None, used: Usage, requests: float, seconds: float | None
) -> float | None:
    """By the hour: the time that is left; by the token: as much for a request as until now."""
    if price is not None and price.gpu_hour is not None:
        return None if seconds is None else Usage(seconds=seconds).cost(price)
    so_far = used.cost(price)
    if so_far is None or (requests and not used.requests):
        return None
    return so_far * requests / used.requests if requests else 0.0


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    reasons = sorted({reason for row in rows for reason in row["refused"]})
    return {name: sum(row[name] for row in rows) for name in _COUNTS} | {
        "refused": {
            reason: sum(row["refused"].get(reason, 0) for row in rows) for reason in reasons
        }
    }


def _total(teachers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cached = [one["cached_tokens"] for one in teachers if one["cached_tokens"] is not None]
    told = [one["prompt_tokens"] for one in teachers if one["cached_tokens"] is not None]
    left = [one["seconds_left"] for one in teachers]
    known = None not in left
    return {
        **_counts(teachers),
        **{
            name: sum(one[name] for one in teachers)
            for name in ("requests", "untold", "untimed", "prompt_tokens", "completion_tokens")
        },
        "cached_tokens": sum(cached) if cached else None,
        "cached_share": sum(cached) / sum(told) if sum(told) else None,
        "money": _by_currency(teachers, "money"),
        "money_left": _by_currency(teachers, "money_left"),
        "unpriced": [one["name"] for one in teachers if one["money"] is None],
        "seconds_left_side_by_side": max(left, default=0.0) if known else None,
        "seconds_left_in_turn": math.fsum(left) if known else None,
    }


def _by_currency(teachers: Iterable[dict[str, Any]], key: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in teachers:
        if one[key] is not None:
            found[one["currency"]] = found.get(one["currency"], 0.0) + one[key]
    return found
