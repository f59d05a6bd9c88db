"""Estimate the requests and tokens that a panel still needs, from the texts alone."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sp2dpo.annotation.writer import pending_jobs
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.vllm import command_lines, serve_warnings
from sp2dpo.pairs.pair import Pair
from sp2dpo.panel.panel import Panel
from sp2dpo.panel.rubric import Rubric, count_images, message_text
from sp2dpo.store.counts import count_replies
from sp2dpo.store.questions import QuestionPlan, Shard
from sp2dpo.store.reread import count_readable
from sp2dpo.store.store import Store
from sp2dpo.text import count_noun, format_count, shell_lines, wrap

CHARACTERS = 4
"""Characters per token: about right for English. Our choice."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Size of the requests to a teacher.

    Attributes:
        requests: Number of requests.
        characters: Number of characters in all requests.
        shared: Those characters that are a common prefix with an earlier request about the same
            pair, in the same order of the responses: what a prefix cache can serve.
        images: Number of images in all requests; their tokens are not estimated.
    """

    requests: int = 0
    characters: int = 0
    shared: int = 0
    images: int = 0

    @property
    def share(self) -> float:
        """Share of the characters that a prefix cache can serve, in [0, 1)."""
        return self.shared / self.characters if self.characters else 0.0

    def __add__(self, other: "Text") -> "Text":
        return Text(
            requests=self.requests + other.requests,
            characters=self.characters + other.characters,
            shared=self.shared + other.shared,
            images=self.images + other.images,
        )


def measure_requests(
    store: Store, panel: Panel, teacher: Endpoint, *, shard: Shard | None = None
) -> Text:
    """Return the size of the requests that a teacher still needs.

    Args:
        store: Store with the pairs; read a page at a time.
        panel: Panel of the teacher.
        teacher: The teacher.
        shard: Count only pairs of this shard; None for all pairs of the store's own shard.
    """
    plan = QuestionPlan.from_panel(panel, teacher, again=False)
    text = Text()
    for job in pending_jobs(store, plan):
        # The store is not restricted to the shard yet, because a dry run changes nothing.
        if shard is None or shard.contains(job.pair.id):
            prompts = [(question.key.variant, question.key.order) for question in job.questions]
            text += count_text(job.pair, prompts, panel.rubric)
    return text


def count_text(pair: Pair, prompts: Iterable[tuple[str, str]], rubric: Rubric) -> Text:
    """Return the size of the requests about a pair in these variants and orders."""
    variants_of: dict[str, list[str]] = {}
    for variant, order in prompts:
        variants_of.setdefault(order, []).append(variant)
    text = Text()
    for order, variants in variants_of.items():
        # In one order, requests differ only in the variant's paragraph at their end.
        messages = rubric.messages(pair, variants[0], order)
        closings = [len(rubric.variants[variant].strip()) for variant in variants]
        shared = sum(len(message_text(message)) for message in messages) - closings[0]
        text += Text(
            requests=len(variants),
            characters=shared * len(variants) + sum(closings),
            shared=shared * (len(variants) - 1),
            images=count_images(pair) * len(variants),
        )
    return text


def plan_lines(store: Store, panel: Panel, *, shard: Shard | None = None) -> list[str]:
    """Return what a run would ask, as lines. Sends no request, starts no server, stores nothing.

    Args:
        store: Store with the pairs.
        panel: Panel that would be asked.
        shard: Shard that the store would be restricted to; None for its present one.

    Raises:
        ValueError: If the store is restricted to another shard, or holds replies to all pairs.
    """
    current = store.questions.shard()
    if shard is not None and shard != current and (current is not None or store.teachers()):
        raise ValueError(f"{store.path} is for {current or 'all pairs'}, not for the shard {shard}")
    rubric, shard = panel.rubric, shard or current
    protocol = f"{rubric.protocol}, both orders" if rubric.blind else rubric.protocol
    covers = store.complete_panel(panel).covers
    # The values of `covers` are names of a panel's YAML, not prose.
    gap = "signed gap" if covers == "signed_gap" else "gap, below 0 counted as 0"
    budget = f"{panel.budget}, tolerance {panel.tolerance:g} of the {gap} (covers: {covers})"
    lines = [
        f"rubric {rubric.name} ({rubric.hash[:12]}), protocol {protocol}",
        f"variants {', '.join(panel.variants)}; budget "
        f"{budget if panel.budget == 'adaptive' else panel.budget}",
        *([f"shard {shard} of the pairs"] if shard else []),
    ]
    lines = [part for line in lines for part in wrap(line)]
    for teacher in panel.teachers:
        lines += _teacher_lines(teacher)
    if readable := count_readable(store):
        lines += wrap(
            f"{count_noun(readable, 'refused reply', 'refused replies')} can be read again and "
            "would be kept first; the requests below include those that this saves"
        )
    return [*lines, *(part for line in _request_lines(store, panel, shard) for part in wrap(line))]


def _teacher_lines(teacher: Endpoint) -> list[str]:
    lines = [
        *wrap(f"teacher {teacher.name}: {teacher.model}, revision {teacher.revision or 'none'}"),
        *wrap(f"  sampling {json.dumps(teacher.recorded_sampling)}"),
    ]
    serve = teacher.serve
    if serve is None:
        urls = ", ".join(_without_password(url) for url in teacher.base_urls)
        return [*lines, *wrap(f"  at {urls}")]
    lines.append("  would be served by")
    for command in command_lines(teacher.model, teacher.revision, serve):
        lines += shell_lines(command, indent="    ")
    for warning in serve_warnings(serve):
        lines += wrap(f"    WARNING: {warning}")
    return lines


def _without_password(url: str) -> str:
    # A panel file cannot have a password in an address, but an `Endpoint` made in Python can.
    password, at, _ = urlsplit(url).netloc.rpartition("@")
    return url.replace(f"{password}{at}", "(hidden)@", 1) if at else url


def _request_lines(store: Store, panel: Panel, shard: Shard | None) -> list[str]:
    lines, total, max_tokens = [], Text(), 0
    full_text: Text | None = None  # equal for all teachers that have not replied yet
    for teacher, counts in zip(panel.teachers, count_replies(store, panel), strict=True):
        untouched = counts.pending == counts.all
        text = (
            full_text
            if untouched and full_text
            else measure_requests(store, panel, teacher, shard=shard)
        )
        full_text = text if untouched else full_text
        total += text
        max_tokens += text.requests * teacher.token_limit
        lines.append(f"{teacher.name}: {_format_size(text)}")
    at_most = "at most " if panel.budget == "adaptive" else ""
    return [
        *lines,
        f"together {at_most}{_format_size(total)}; the replies take at most "
        f"{format_count(max_tokens)} tokens",
        f"estimated from the texts, rubric included, at {CHARACTERS} characters a token; the cache "
        "serves what the variants of a pair share",
        "no request was sent; run `sp2dpo pilot` to estimate time and cost",
    ]


def _format_size(text: Text) -> str:
    tokens, shared = text.characters / CHARACTERS, text.shared / CHARACTERS
    images = f" and {count_noun(text.images, 'image')}" if text.images else ""
    return (
        f"{format_count(text.requests)} requests, about {format_count(tokens)} prompt tokens"
        f"{images}, of which a prefix cache can serve about {format_count(shared)}"
    )
