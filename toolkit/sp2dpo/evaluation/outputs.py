"""A student's outputs to a set of prompts: every reply kept, outputs written when all are there.

The folder of a generation holds

    replies.jsonl     every reply as it came; a run that was stopped goes on from it
    outputs.json      AlpacaEval's format: instruction, output, generator, in the prompts' order
    generation.json   what they were made with, and how they ended; written last
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sp2dpo.evaluation.models import Student
from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.files import Journal, atomic_write
from sp2dpo.inference.chats import Chat, ChatResult, ask_chats

JOURNAL, OUTPUTS, RECORD = "replies.jsonl", "outputs.json", "generation.json"


class Generation:
    """The folder of one, open."""

    def __init__(
        self, folder: Path, prompts: PromptSet, student: Student, journal: Journal
    ) -> None:
        self._folder = folder
        self._prompts = prompts
        self._student = student
        self._journal = journal

    @property
    def pending(self) -> list[int]:
        """Numbers of the prompts that have no output yet, in their order."""
        done = self._journal.lines
        return [
            number
            for number in range(len(self._prompts.instructions))
            if "output" not in done.get(str(number), {})
        ]

    def take(
        self, number: int, output: str, *, finish_reason: str | None, tokens: int | None
    ) -> None:
        """Takes an output in."""
        self._journal.add(
            str(number), output=output, finish_reason=finish_reason, tokens=tokens,
            arrived=time.time(),
        )  # fmt: skip

    def chats(self) -> list[Chat]:
        """What is to be asked of a server."""
        return [
            Chat(
                key=str(number),
                messages=self._student.messages(self._prompts.instructions[number]),
            )
            for number in self.pending
        ]

    def take_outcome(self, outcome: ChatResult) -> None:
        """Takes in what came of a chat; a refused one is asked again by the next run."""
        reply = outcome.reply
        if reply is None:
            self._journal.add(outcome.key, reason=outcome.reason, detail=outcome.detail)
        else:
            self.take(
                int(outcome.key), reply.text, finish_reason=reply.finish_reason,
                tokens=reply.completion_tokens,
            )  # fmt: skip

    def finish(self, *, allow_refused: bool) -> dict[str, Any]:
        """Writes outputs.json and, last of all, generation.json.

        Args:
            allow_refused: whether a prompt that the server refuses gets an empty output.

        Returns:
            What generation.json says.

        Raises:
            ValueError: some prompts have no output.
        """
        lines = self._journal.lines
        left = [(number, lines.get(str(number), {}).get("reason")) for number in self.pending]
        refused = [(number, reason) for number, reason in left if reason]
        if left and not (allow_refused and len(refused) == len(left)):
            reasons = Counter(reason or "not asked yet" for _, reason in left)
            said = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            first = lines.get(str(left[0][0]), {}).get("detail")
            raise ValueError(
                f"{len(left)} of {len(self._prompts.instructions)} prompts have no output ({said}"
                f"{f'; the first: {first}' if first else ''}): the same command asks for them "
                "again; --allow-refused writes those that the server refuses as empty outputs"
            )
        rows = [
            {
                "instruction": instruction,
                "output": lines[str(number)].get("output", ""),
                "generator": self._student.model.name,
            }
            for number, instruction in enumerate(self._prompts.instructions)
        ]
        with atomic_write(self._folder / OUTPUTS) as path:
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        ended = Counter(line.get("finish_reason") or "refused" for line in lines.values())
        record = read_header(self._prompts, self._student) | {
            "outputs": len(rows),
            "refused": len(refused),
            "empty": sum(not row["output"].strip() for row in rows),
            "ended": dict(sorted(ended.items())),
            "characters": sum(len(row["output"]) for row in rows) / len(rows),
        }
        with atomic_write(self._folder / RECORD) as path:
            path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return record


def read_header(prompts: PromptSet, student: Student) -> dict[str, Any]:
    """What defines a generation."""
    return {"prompts": prompts.name, "prompts_hash": prompts.hash, **student.record()}


@contextmanager
def open_generation(folder: Path, prompts: PromptSet, student: Student) -> Iterator[Generation]:
    """The folder of a generation, opened to be gone on with.

    Raises:
        ValueError: it was begun with other prompts, or with another student.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / JOURNAL, read_header(prompts, student)) as journal:
        yield Generation(folder, prompts, student, journal)


async def generate_from_server(
    running: Generation,
    student: Student,
    take: Callable[[ChatResult], None],
    *,
    stop: asyncio.Event,
    patience: float,
    say: Callable[[str], None],
    log: Path,
) -> None:
    """Asks a student's server for all that is pending; see `chats.ask_chats`."""

    def both(outcome: ChatResult) -> None:
        running.take_outcome(outcome)
        take(outcome)

    await ask_chats(
        student.model, running.chats(), both, stop=stop, patience=patience, say=say, log=log
    )
