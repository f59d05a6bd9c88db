"""Generate a student's outputs for a set of prompts. An interrupted run can be resumed.

The output folder has the files

    replies.jsonl     every reply in order of arrival; an interrupted run resumes from this file
    outputs.json      instruction, output and generator in AlpacaEval's format, in prompt order;
                      a block of thinking before an output is left out
    generation.json   the settings of the run and counts of the results; written last
"""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp2dpo.evaluation.models import LocalConfig, Student
from sp2dpo.evaluation.prompts import PromptSet
from sp2dpo.evaluation.requests import (
    Approve,
    Progress,
    Report,
    advise,
    answer_chats,
    no_progress,
    reply_problem,
    silent,
    thinking_problem,
)
from sp2dpo.files import Journal, file_sha256, write_json
from sp2dpo.inference.chats import Chat, ChatResult
from sp2dpo.inference.thinking import split_thinking
from sp2dpo.text import shorten

JOURNAL, OUTPUTS, RECORD = "replies.jsonl", "outputs.json", "generation.json"
_NEED_OTHER_SETTINGS = ("length", "reasoning-only", "no-content", "unfinished")
"""Reasons that are no decision of the server's about a prompt: an empty output would be wrong."""


@dataclass(frozen=True, kw_only=True)
class GenerationSummary:
    """Counts of a finished generation.

    Attributes:
        student: Name of the student.
        path: File with the outputs, in AlpacaEval's format.
        outputs: Number of outputs, one per prompt.
        characters: Mean length of an output, in characters.
        empty: Number of outputs without any text, although the model ended its reply.
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
    send_keys: Collection[str] = (),
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
        allow_refused: Whether to write an empty output for a prompt that the server or the model
            refuses.
        send_keys: API keys that may be sent, see `annotate_pairs`.
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
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / JOURNAL, run_settings(prompts, student)) as journal:
        generation = Generation(folder=folder, prompts=prompts, student=student, journal=journal)
        if generation.pending and student.local is not None:
            generation.run_locally(student.local, progress)
        elif generation.pending:
            answer_chats(
                student.model, generation.chats(), generation.take_result, unit="outputs",
                patience=patience, log=folder / "server.log", send_keys=send_keys,
                approve=approve, progress=progress, report=report,
            )  # fmt: skip
        return generation.finish(allow_refused=allow_refused)


def run_settings(prompts: PromptSet, student: Student) -> dict[str, Any]:
    """Return the settings that determine the outputs, as the files of a run record them.

    Addresses of servers are left out: a run may resume on another server.
    """
    model = student.model
    return {
        "prompts": prompts.name, "prompts_hash": prompts.hash, "student": model.name,
        "model": model.model, "revision": model.revision, "system": student.system,
        "sampling": model.recorded_sampling,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An open output folder, to which outputs are added one by one.

    Attributes:
        folder: The output folder.
        prompts: The prompts.
        student: The model that answers.
        journal: Journal of the replies, whose keys are the indices of the prompts.
    """

    folder: Path
    prompts: PromptSet
    student: Student
    journal: Journal

    @property
    def pending(self) -> list[int]:
        """Return the indices of the prompts that have no output yet, in ascending order."""
        done = self.journal.lines
        return [
            number
            for number in range(len(self.prompts.instructions))
            if not _has_output(done.get(str(number), {}))
        ]

    def chats(self) -> list[Chat]:
        """Return the requests for the pending prompts."""
        instructions = self.prompts.instructions
        return [
            Chat(key=str(number), messages=self.student.messages(instructions[number]))
            for number in self.pending
        ]

    def take_result(self, result: ChatResult) -> None:
        """Record the result of a request; the next run sends a refused request again."""
        reply = result.reply
        if reply is None:
            self.journal.add(result.key, reason=result.reason, detail=result.detail)
        elif problem := reply_problem(reply):
            raw = reply.message or reply.text
            ending = f"finish_reason {reply.served_finish_reason}: {shorten(reply.refusal or raw)}"
            self.journal.add(result.key, reason=problem, detail=ending, raw=raw)
        else:
            self._add(result.key, reply.text, reply.finish_reason, reply.completion_tokens)

    def _add(self, key: str, output: str, finish_reason: str | None, tokens: int | None) -> None:
        # The whole text with its thinking, which `finish` leaves out.
        self.journal.add(
            key, output=output, finish_reason=finish_reason, tokens=tokens, arrived=time.time()
        )

    def run_locally(self, local: LocalConfig, progress: Progress) -> None:
        """Generate the pending outputs in this process.

        Raises:
            ValueError: If PyTorch is not installed or the model cannot be loaded.
        """
        try:
            from sp2dpo.evaluation.local_model import LocalModel  # noqa: PLC0415 - imports torch
        except ImportError as error:
            raise ValueError(
                f"a local model needs PyTorch ({error}): pip install 'sp2dpo[train]'"
            ) from error
        endpoint = self.student.model
        model = LocalModel(endpoint.model, endpoint.revision, local.device, local.dtype)
        with progress(len(self.pending), "outputs") as advance:

            def take(number: int, output: str, *, finish_reason: str, tokens: int) -> None:
                if problem := thinking_problem(output, finish_reason):
                    detail = f"finish_reason {finish_reason}: {shorten(output)}"
                    self.journal.add(str(number), reason=problem, detail=detail, raw=output)
                else:
                    self._add(str(number), output, finish_reason, tokens)
                advance()

            model.generate(
                # All prompts, because the batches must not depend on what is pending.
                [self.student.messages(prompt) for prompt in self.prompts.instructions],
                self.pending, endpoint.sampling, take, batch_size=local.batch_size,
            )  # fmt: skip

    def finish(self, *, allow_refused: bool) -> GenerationSummary:
        """Write outputs.json and then generation.json.

        Args:
            allow_refused: Whether to write an empty output for a prompt that the server or the
                model refused.

        Raises:
            ValueError: If some prompts have no output.
        """
        lines, instructions = self.journal.lines, self.prompts.instructions
        left = [lines.get(str(number), {}) for number in self.pending]
        refused = sum(_is_refused(line) for line in left)
        # Every missing prompt must have been asked: an interrupted run is not complete.
        if left and not (allow_refused and refused == len(left)):
            reasons = Counter(line.get("reason") or "not asked yet" for line in left)
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            first = left[0].get("detail")
            allowing = "; --allow-refused writes an empty output for a refused prompt"
            raise ValueError(
                f"{len(left)} of {len(instructions)} prompts have no output ({listed}"
                f"{f'; the first: {first}' if first else ''}): run the same command again "
                f"to retry them{allowing if refused else ''}{advise(reasons)}"
            )
        name = self.student.model.name
        texts = [lines[str(number)].get("output", "") for number in range(len(instructions))]
        # A judge compares answers: thinking would count as their text and length.
        outputs = [split_thinking(text)[1] for text in texts]
        write_json(
            self.folder / OUTPUTS,
            [
                {"instruction": instruction, "output": output, "generator": name}
                for instruction, output in zip(instructions, outputs, strict=True)
            ],
        )
        # A journal of an earlier version has texts without a finish reason, which ended.
        ended = Counter(
            str(line.get("finish_reason") or "stop") if _has_output(line) else "refused"
            for line in lines.values()
        )
        summary = GenerationSummary(
            student=name,
            path=self.folder / OUTPUTS,
            outputs=len(outputs),
            characters=sum(map(len, outputs)) / len(outputs),
            empty=sum(not output.strip() for output in outputs),
            truncated=ended["length"],
            refused=refused,
        )
        counts: dict[str, Any] = {
            "outputs": summary.outputs, "refused": refused, "empty": summary.empty,
            "ended": dict(sorted(ended.items())), "characters": summary.characters,
        }  # fmt: skip
        counts["outputs_sha256"] = file_sha256(self.folder / OUTPUTS)
        write_json(self.folder / RECORD, run_settings(self.prompts, self.student) | counts)
        return summary


_INCOMPLETE = ("content_filter", "tool_calls", "function_call", "error", "abort")
"""Finish reasons, in servers' words, of replies that are no complete answer."""


def _has_output(line: dict[str, Any]) -> bool:
    """Return whether a line of the journal has an output that may be judged."""
    if "output" not in line:
        return False
    if not isinstance(line["output"], str):
        raise ValueError(
            f"{JOURNAL}: the output of prompt {line.get('key')} is not text: delete its line and "
            "run the same command again"
        )
    # Earlier versions recorded every reply as an output, however it ended.
    if not line["output"].strip():
        return line.get("finish_reason") == "stop"
    return line.get("finish_reason") not in _INCOMPLETE


def _is_refused(line: dict[str, Any]) -> bool:
    return bool(line.get("reason")) and line["reason"] not in _NEED_OTHER_SETTINGS
