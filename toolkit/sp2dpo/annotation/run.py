"""Ask a panel about every pair in a store. Safe to interrupt: a rerun asks for what is missing."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Literal

from sp2dpo.annotation.local import RunOptions, annotate_locally
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.keys import allow_keys
from sp2dpo.interrupts import run_interruptible
from sp2dpo.pairs.reading import PairsFrom
from sp2dpo.pairs.sources import Source, choose_source, read_rows
from sp2dpo.pairs.tally import no_pair_error
from sp2dpo.panel.advice import advise_all
from sp2dpo.panel.panel import Panel, load_panel
from sp2dpo.store.corpus import Corpus
from sp2dpo.store.counts import ReplyCounts, count_replies
from sp2dpo.store.questions import Shard
from sp2dpo.store.records import ReplyRecord
from sp2dpo.store.reread import reread_lines, reread_replies
from sp2dpo.store.store import Store, open_store_for_writing
from sp2dpo.text import count_noun

Progress = Callable[[int], AbstractContextManager[Callable[[int, int], object]]]
"""Open a progress bar over a number of replies. The function that the block receives is called with
the numbers of replies that were just finished and, of those, refused."""


@dataclass(frozen=True, kw_only=True)
class AnnotationResult:
    """The state of a store after a run, and what the run did.

    Attributes:
        teachers: Counts per teacher: kept + refused + spared + pending == all.
        shard: The share of the pairs that the store holds replies for; None for all pairs.
        received: Replies received in this run, including those that could not be read.
        retried: Replies of this run that could not be read and were requested again.
        seconds: Duration of the run.
    """

    teachers: tuple[ReplyCounts, ...]
    shard: Shard | None
    received: int
    retried: int
    seconds: float

    @property
    def kept(self) -> int:
        """Replies in the store that hold an annotation."""
        return sum(counts.kept for counts in self.teachers)

    @property
    def refused(self) -> dict[str, int]:
        """Refused replies in the store, by reason."""
        total: Counter[str] = Counter()
        for counts in self.teachers:
            total.update(counts.refused)
        return dict(total)

    @property
    def missing(self) -> int:
        """Replies that are still to be requested."""
        return sum(counts.pending for counts in self.teachers)


class NoReplyKept(ValueError):
    """A teacher has answered every question, and no reply could be kept."""


@contextmanager
def no_progress(total: int) -> Iterator[Callable[[int, int], object]]:
    """Show no progress."""
    yield lambda finished, refused: None


def do_nothing(_: object) -> None:
    """Do nothing: the default of callbacks."""


def annotate_pairs(
    pairs: Source | str | Path | None,
    panel: Panel | str | Path,
    store: Store | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    retry_refused: bool = False,
    shard: Shard | str | None = None,
    patience: float = 900,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    send_keys: Collection[str] = (),
    approve: Callable[[Endpoint], object] = do_nothing,
    progress: Progress = no_progress,
    report: Callable[[str], None] = do_nothing,
    on_source: Callable[[Corpus], object] = do_nothing,
    on_result: Callable[[AnnotationResult], object] = do_nothing,
) -> AnnotationResult:
    """Ask every teacher of a panel about every pair, and store the replies.

    A rerun asks only for what is missing. Refused replies in the store that can be read now are
    kept first, see `store.reread`. Works in a notebook, too: where an event loop is already
    running, the requests are made from a thread. Ctrl-C and the signals of schedulers let in-flight
    requests finish; a second signal cancels them (see `interrupts`).

    Args:
        pairs: File or Hub id of the pairs, see `open_source`; None if the store holds them.
        panel: Which teachers are asked what: a loaded panel or its YAML file.
        store: The store to write to: its file, created if it does not exist, or an open store.
        columns: Columns of the pairs by role, such as `{"prompt": "question"}`, see `open_source`;
            None for those of the store, or by the names of well-known data sets.
        pairs_from: Pairs of a row with several scored responses, see `open_source`.
        retry_refused: Request refused replies once more. Not with an adaptive panel.
        shard: Ask about one share of the pairs only: a `Shard`, or "I/N" with I from 0 to N-1.
        patience: Seconds without any reply from a teacher after which the run ends.
        engine: "local" sends the requests from this process, "ray" from all nodes of a Ray cluster.
        ray_address: Address of the Ray cluster; None for $RAY_ADDRESS or, if that is not set, a new
            cluster on this machine.
        send_keys: API keys that may be sent to another machine, as `VARIABLE=HOST`, such as
            `OPENAI_API_KEY=api.openai.com`. Those that were confirmed at a terminal before may be
            sent, too.
        approve: Called with each teacher whose servers would be started (`serve:`); an exception
            refuses. The default approves: the panel's command runs on this machine.
        progress: Opens a progress bar.
        report: Called with lines for people, such as the state of servers.
        on_source: Called once the pairs are in the store, before anything is asked.
        on_result: Called with the result, also when the run fails or is interrupted.

    Raises:
        ValueError: If the panel or the pairs are invalid or contradict the store, if an API key may
            not be sent to the host of its teacher, if another process writes to the store, or if
            replies are still missing.
        NoReplyKept: If a teacher has no reply that could be kept; a ValueError.
        EndpointError: If a teacher cannot be reached, sends no reply for too long, or sends
            only unreadable replies. What was received before is stored.
        OSError: If a file cannot be read or written, or a server cannot be started.
        Interrupted: If a signal stopped the run.
        ModuleNotFoundError: If Ray is not installed.
    """
    panel = panel if isinstance(panel, Panel) else load_panel(Path(panel))
    # First, so that a missing Ray or a wrong engine leaves no new store behind.
    run_engine = _load_engine(engine, ray_address)
    with open_store_with_pairs(
        pairs, panel, store, columns=columns, pairs_from=pairs_from, on_source=on_source
    ) as opened:
        opened.questions.restrict_to_shard(Shard.parse(shard) if isinstance(shard, str) else shard)
        reread = reread_replies(opened)
        if reread.kept:
            for line in reread_lines(reread):
                report(line)
        stated, panel = panel.covers, opened.complete_panel(panel)
        # Under the labelled protocol no gap is below 0, so both choices are the same.
        is_narrower = panel.rubric.blind and panel.covers == "beta" != stated
        if panel.budget == "adaptive" and is_narrower:
            report(
                "the panel does not set `covers`, so `covers: beta` of the store is kept: signed "
                "gaps below 0 may differ from the full panel's; for arms that flip or drop pairs, "
                "or soft labels, set `covers: signed_gap` in the panel, which asks for more replies"
            )
        # Before counting: a changed adaptive panel may need more replies about settled pairs.
        opened.reopen_settled(panel)
        needed = {
            counts.teacher: counts.requests_needed(retry_refused)
            for counts in count_replies(opened, panel)
        }
        # Every node of a cluster checks all teachers, also those without a missing reply.
        is_asked = [engine == "ray" or needed[teacher.name] for teacher in panel.teachers]
        teachers = compress(panel.teachers, is_asked) if any(needed.values()) else ()
        allowed = allow_keys(teachers, send_keys)
        for teacher in panel.teachers:
            if teacher.serve is not None and needed[teacher.name]:
                approve(teacher)
        start, received, details = time.monotonic(), Counter[bool](), dict[str, str]()

        def run() -> None:
            with progress(sum(needed.values())) as advance:

                def count_reply(record: ReplyRecord, final: bool) -> None:
                    received[final] += 1
                    if record.reason is not None:
                        details.setdefault(record.reason, record.detail or "")
                    if final:
                        advance(1, record.annotation is None)

                async def work(stop: asyncio.Event) -> None:
                    options = RunOptions(
                        patience=patience,
                        again=retry_refused,
                        stop=stop,
                        progress=count_reply,
                        spare=lambda replies: advance(replies, 0),
                        say=report,
                        send_keys=allowed,
                    )
                    await run_engine(opened, panel, options)

                run_interruptible(work, say=report)

        try:
            if any(needed.values()):
                run()
            else:
                opened.record_panel(panel)  # its prices and licenses may be new
        finally:
            result = AnnotationResult(
                teachers=tuple(count_replies(opened, panel)),
                shard=opened.questions.shard(),
                received=received.total(),
                retried=received[False],
                seconds=time.monotonic() - start,
            )
            # Also after a failure or an interrupt, when the counts matter most.
            on_result(result)
    silent = []
    for teacher, counts in zip(panel.teachers, result.teachers, strict=True):
        if counts.all and not counts.kept:
            advice = advise_all(counts.refused, details, structured=teacher.structured)
            silent.append(
                f"no reply of {teacher.name} could be kept{f': {advice}' if advice else ''}"
            )
    if silent:
        raise NoReplyKept("; ".join(silent))
    if result.missing:
        raise ValueError("some replies are still missing: run the same command again")
    return result


@contextmanager
def open_store_with_pairs(
    pairs: Source | str | Path | None,
    panel: Panel,
    store: Store | str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    pairs_from: PairsFrom | None = None,
    keep: bool = True,
    on_source: Callable[[Corpus], object] = do_nothing,
) -> Iterator[Store]:
    """Open a store for writing, add the pairs, and check that the panel does not contradict it.

    Args:
        pairs: File or Hub id of the pairs; None if the store holds them.
        panel: The panel that will be asked.
        store: The file, created if it does not exist, or an open store, which stays open.
        columns: Columns of the pairs by role; None for those of the store.
        pairs_from: Pairs of a row with several scored responses; None for those of the store.
        keep: Whether a file that is created here stays.
        on_source: Called once the pairs are in the store.

    Raises:
        ValueError: If there is no pair, or the pairs or the panel contradict the store.
        OSError: If the pairs or the store cannot be read.
    """
    if pairs is None and (columns or pairs_from):
        raise ValueError("columns and pairs_from say how pairs are read: give the pairs too")
    source = None
    if pairs is not None:
        source = choose_source(
            pairs, columns=columns, pairs_from=pairs_from, images=panel.sees_images
        )
    with ExitStack() as stack:
        if not isinstance(store, Store):
            path = Path(store)
            if source is None and not path.exists():
                raise FileNotFoundError(f"{path} does not exist yet: give the pairs")
            store = stack.enter_context(open_store_for_writing(path, keep=keep))
        if source:
            source = store.corpus.resume_reading(source)
            store.corpus.add(source, read_rows(source))
        on_source(store.corpus)
        stored = store.corpus.source()
        if stored is None or not stored.pairs:
            aside = next(store.corpus.set_aside(), None)
            reasons = stored.set_aside if stored else {}
            raise no_pair_error(str(source or store.path), reasons, aside and aside.raw)
        store.check_panel(panel)
        if not panel.sees_images and (images := store.corpus.image_pairs()):
            raise ValueError(
                f"{count_noun(images, 'pair')} of {store.path} have images, which not all teachers "
                "of the panel see: set `sees_images: true` for each, or use another --store"
            )
        yield store


Engine = Callable[[Store, Panel, RunOptions], Awaitable[None]]


def _load_engine(name: Literal["local", "ray"], ray_address: str | None) -> Engine:
    if name == "local":
        if ray_address is not None:
            raise ValueError('ray_address needs engine "ray"')
        return annotate_locally
    try:
        from sp2dpo.annotation.ray import annotate_on_ray  # noqa: PLC0415 - Ray is optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the engine "ray" needs Ray: pip install "sp2dpo[ray]"'
        ) from error
    return partial(annotate_on_ray, address=ray_address)
