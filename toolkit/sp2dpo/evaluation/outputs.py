"""Generate a student's outputs for a set of prompts. An interrupted run can be resumed.

The output folder has the files

    replies.jsonl     every reply in order of arrival; an interrupted run resumes from this file
    outputs.json      instruction, output and generator in AlpacaEval's format, in prompt order
    generation.json   the settings of the run and counts of the results; written last
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.evaluation.models import Student
from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.evaluation.requests import (
    Approve,
    Progress,
    Report,
    answer_chats,
    no_progress,
    silent,
)
from sp2dpo.files import Journal, atomic_write
from sp2dpo.inference.chats import Chat, ChatResult

JOURNAL, OUTPUTS, RECORD = "replies.jsonl", "outputs.json", "generation.json"


@dataclass(frozen=True, kw_only=True)
class GenerationSummary:
    """Counts of a finished generation.

    Attributes:
        student: Name of the student.
        path: File with the outputs, in AlpacaEval's format.
        outputs: Number of outputs, one per prompt.
        characters: Mean length of an output, in characters.
        empty: Number of outputs without any text.
        truncated: Number of outputs that were cut off at max_tokens.
        refused: Number of prompts that the server refused; their outputs are empty.
    """

    student: str
    path: Path
    outputs: int
    characters: float
    empty: int
    truncated: int
    refused: int


def generate_outputs(
    prompts: PromptSet,
    student: Student,
    folder: Path | str,
    *,
    patience: float = 900,
    allow_refused: bool = False,
    approve: Approve = silent,
    progress: Progress = no_progress,
    report: Report = silent,
) -> GenerationSummary:
    """Generate the missing outputs, and write all outputs once they are complete.

    Safe to interrupt: the next call with the same arguments requests only missing outputs.

    Args:
        prompts: The prompts, see `read_prompts`.
        student: The model that answers, see `load_student`.
        folder: Output folder; its files are listed at the top of this module.
        patience: Seconds without any answer after which the run ends.
        allow_refused: Whether to write an empty output for a prompt that the server refuses.
        approve: Called before servers described by the student are started.
        progress: Opens a progress bar.
        report: Called with the state of the servers, line by line.

    Raises:
        ValueError: If the folder belongs to another run, if some prompts have no output, or if a
            local model cannot be loaded.
        EndpointError: If the server refuses access or does not answer for too long.
        OSError: If a file cannot be written or a server cannot be started.
        Interrupted: If a signal stopped the run.
    """
    folder = Path(folder)
    with open_generation(folder, prompts, student) as generation:
        if generation.pending and student.local is not None:
            _generate_locally(generation, prompts, student, progress)
        elif generation.pending:
            answer_chats(
                student.model, generation.chats(), generation.take_outcome, unit="outputs",
                patience=patience, log=folder / "server.log", approve=approve,
                progress=progress, report=report,
            )  # fmt: skip
        record = generation.finish(allow_refused=allow_refused)
    return GenerationSummary(
        student=student.model.name,
        path=folder / OUTPUTS,
        outputs=record["outputs"],
        characters=record["characters"],
        empty=record["empty"],
        truncated=record["ended"].get("length", 0),
        refused=record["refused"],
    )


def _generate_locally(
    generation: "Generation", prompts: PromptSet, student: Student, progress: Progress
) -> None:
    try:
        from sp2dpo.evaluation.local_model import LocalModel  # noqa: PLC0415 - imports torch
    except ImportError as error:
        raise ValueError(
            f"a local model needs PyTorch ({error}): pip install 'sp2dpo[train]'"
        ) from error
    endpoint, local = student.model, student.local
    if local is None:
        return
    model = LocalModel(endpoint.model, endpoint.revision, local.device, local.dtype)
    with progress(len(generation.pending), "outputs") as advance:

        def take(number: int, output: str, **details: Any) -> None:
            generation.take(number, output, **details)
            advance()

        model.generate(
            [student.messages(instruction) for instruction in prompts.instructions],
            generation.pending, endpoint.sampling, take, batch_size=local.batch_size,
        )  # fmt: skip


class Generation:
    """An open output folder, to which outputs are added one by one."""

    def __init__(
        self, folder: Path, prompts: PromptSet, student: Student, journal: Journal
    ) -> None:
        self._folder = folder
        self._prompts = prompts
        self._student = student
        self._journal = journal

    @property
    def pending(self) -> list[int]:
        """Return the indices of the prompts that have no output yet, in ascending order."""
        done = self._journal.lines
        return [
            number
            for number in range(len(self._prompts.instructions))
            if "output" not in done.get(str(number), {})
        ]

    def take(
        self, number: int, output: str, *, finish_reason: str | None, tokens: int | None
    ) -> None:
        """Record the output for a prompt, given by its index."""
        self._journal.add(
            str(number), output=output, finish_reason=finish_reason, tokens=tokens,
            arrived=time.time(),
        )  # fmt: skip

    def chats(self) -> list[Chat]:
        """Return the requests for the pending prompts."""
        return [
            Chat(
                key=str(number),
                messages=self._student.messages(self._prompts.instructions[number]),
            )
            for number in self.pending
        ]

    def take_outcome(self, outcome: ChatResult) -> None:
        """Record the result of a request; the next run sends a refused request again."""
        reply = outcome.reply
        if reply is None:
            self._journal.add(outcome.key, reason=outcome.reason, detail=outcome.detail)
        else:
            self.take(
                int(outcome.key), reply.text, finish_reason=reply.finish_reason,
                tokens=reply.completion_tokens,
            )  # fmt: skip

    def finish(self, *, allow_refused: bool) -> dict[str, Any]:
        """Write outputs.json and then generation.json.

        Args:
            allow_refused: Whether to write an empty output for a prompt that the server refused.

        Returns:
            The content of generation.json.

        Raises:
            ValueError: If some prompts have no output.
        """
        lines = self._journal.lines
        left = [(number, lines.get(str(number), {}).get("reason")) for number in self.pending]
        refused = [(number, reason) for number, reason in left if reason]
        if left and not (allow_refused and len(refused) == len(left)):
            reasons = Counter(reason or "not asked yet" for _, reason in left)
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            first = lines.get(str(left[0][0]), {}).get("detail")
            raise ValueError(
                f"{len(left)} of {len(self._prompts.instructions)} prompts have no output ({listed}"
                f"{f'; the first: {first}' if first else ''}): run the same command again "
                "to retry them; --allow-refused writes an empty output for a refused prompt"
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
    """Return the settings that define a run; each output folder belongs to one set of them."""
    return {"prompts": prompts.name, "prompts_hash": prompts.hash, **student.record()}


@contextmanager
def open_generation(folder: Path, prompts: PromptSet, student: Student) -> Iterator[Generation]:
    """Open an output folder, to start a run or to resume one.

    Raises:
        ValueError: If the folder belongs to other prompts or to another student.
        OSError: If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / JOURNAL, read_header(prompts, student)) as journal:
        yield Generation(folder, prompts, student, journal)
