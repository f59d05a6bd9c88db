"""Collect a judge's verdicts with AlpacaEval's prompts and parser, but with our own client.

The package `alpaca_eval` writes the judge's prompts (with its template, and the two outputs in an
order drawn with its seed) and parses the answers. Its own client ends a run at the first error and
scores failed requests as empty outputs. Our client retries, resumes, and stores every verdict. For
the same answers, both give the same preferences.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sp2dpo.evaluation.models import MARKS, title
from sp2dpo.evaluation.prompts import Output, PromptSet, order_rows, read_outputs
from sp2dpo.evaluation.requests import (
    Approve,
    Progress,
    Report,
    advise,
    answer_chats,
    no_progress,
    reply_problem,
    silent,
)
from sp2dpo.files import Journal, file_sha256, write_json
from sp2dpo.inference.chats import Chat, ChatResult
from sp2dpo.inference.client import EndpointError, Reply
from sp2dpo.inference.endpoint import Endpoint
from sp2dpo.inference.thinking import split_thinking
from sp2dpo.text import canonical_json, has_chat_marks, shorten, split_chat_marks

ANNOTATIONS, RECORD = "annotations.json", "evaluation.json"
TEMPLATE = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
"""AlpacaEval 2.0's template: one verdict without reasoning."""
_GIVE_UP_AFTER = 20
"""Number of replies after which the run ends if none of them has log-probabilities."""


class AlpacaEvalMissing(ValueError):
    """The package `alpaca_eval` is not installed."""


def import_alpaca_eval() -> Any:
    """Import the package `alpaca_eval` without changing the level of the root logger.

    Raises:
        AlpacaEvalMissing: If the package is not installed.
    """
    try:
        # Importing alpaca_eval sets the level of the root logger, and the deprecated
        # pkg_resources that it imports warns.
        with without_root_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import alpaca_eval.annotators  # noqa: PLC0415 - optional, and slow to import
            import alpaca_eval.utils  # noqa: PLC0415
    except ImportError as error:
        raise AlpacaEvalMissing(
            f"judging needs alpaca_eval ({error}): pip install 'sp2dpo[eval]'"
        ) from error
    return alpaca_eval


@contextlib.contextmanager
def without_root_log() -> Iterator[None]:
    """Suppress messages of alpaca_eval, which uses the root logger, then restore its level."""
    root = logging.getLogger()
    level = root.level
    # The package logs an error with a traceback for every answer that it cannot parse.
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The verdicts on one set of outputs.

    Attributes:
        title: Title of a table of these verdicts, see `models.title`.
        student: Name of the model that wrote the outputs.
        baseline: Name of the model that wrote the reference outputs.
        judge: Name and settings of the judge, as in evaluation.json.
        prompts: Name, hash and count of the prompts, as in evaluation.json.
        length_controlled: Whether the prompts have a length-controlled rate.
        folder: Folder that the verdicts were read from.
        table: The annotations as a pandas data frame, in prompt order.
    """

    title: str
    student: str
    baseline: str
    judge: Mapping[str, Any]
    prompts: Mapping[str, Any]
    length_controlled: bool
    folder: Path
    table: Any

    @property
    def unscored(self) -> int:
        """Number of prompts without a verdict."""
        return int(self.table["preference"].isna().sum())


def read_result(folder: Path) -> EvaluationResult:
    """Read a folder that `judge_outputs` wrote.

    Raises:
        ValueError: If the folder does not contain a finished result.
        OSError: If a file cannot be read.
    """
    import_alpaca_eval()
    import pandas as pd  # noqa: PLC0415 - comes with alpaca_eval

    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder}: no {RECORD}: `sp2dpo evaluate judge` writes it")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # Earlier releases did not write these hashes.
        if record.get("sha256", _record_hash(record)) != _record_hash(record):
            raise ValueError(f"{RECORD} is damaged; run `evaluate judge` again, which writes it")
        annotated = file_sha256(folder / ANNOTATIONS)
        if record.get("annotations_sha256", annotated) != annotated:
            raise ValueError(f"{ANNOTATIONS} is damaged; run `evaluate judge` again")
        rows = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
        # A null becomes NaN; without a single verdict, pandas would keep a column of objects.
        table = pd.DataFrame(rows).astype({"preference": float})
        if len(table) != record["prompts"]["count"]:
            raise ValueError(f"{len(table)} rows of {record['prompts']['count']}")
        return EvaluationResult(
            title=record["title"],
            student=str(record["student"]),
            baseline=record["baseline"],
            judge=record["judge"],
            prompts=record["prompts"],
            length_controlled=bool(record["length_controlled"]),
            folder=folder,
            table=table,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: not a result of `evaluate judge`: {error}") from error


def judge_outputs(
    prompts: PromptSet,
    outputs: Path | str,
    judge: Endpoint,
    folder: Path | str,
    *,
    reference: Path | str | None = None,
    patience: float = 900,
    send_keys: Collection[str] = (),
    approve: Approve = silent,
    progress: Progress = no_progress,
    report: Report = silent,
    note: Report = silent,
) -> EvaluationResult:
    """Let a judge compare a student's outputs with a baseline's, as AlpacaEval 2.0 does.

    Safe to interrupt: the next call with the same arguments requests only missing verdicts. The
    finished folder has verdicts.jsonl, annotations.json and evaluation.json (written last).

    Args:
        prompts: The prompts that were answered.
        outputs: A folder that `generate_outputs` wrote, or a file in AlpacaEval's format.
        judge: The judge, see `load_judge`.
        folder: Output folder.
        reference: Outputs of the baseline; None for those that come with the prompts.
        patience: Seconds without any answer after which the run ends.
        send_keys: API keys that may be sent, see `annotate_pairs`.
        approve: Called before servers described by the judge are started.
        progress: Opens a progress bar.
        report: Called with the state of the servers, line by line.
        note: Called with notes on the interpretation of the result, such as missing verdicts.

    Raises:
        ValueError: If outputs and prompts do not match, if there is no baseline, if the folder
            belongs to another run, or if no verdict can be parsed.
        EndpointError: If the server refuses access, does not answer for too long, or sends no
            log-probabilities.
        OSError: If a file cannot be read or written, or a server cannot be started.
        Interrupted: If a signal stopped the run.
    """
    outputs, folder = Path(outputs), Path(folder)
    import_alpaca_eval()  # before any file is written
    student_rows, reordered = order_rows(prompts, read_outputs(outputs), str(outputs))
    if reordered:
        note(f"{outputs}: its rows were in another order; they are now in the prompts' order")
    if reference is not None:
        base_rows, _ = order_rows(prompts, read_outputs(Path(reference)), str(reference))
    elif prompts.reference is not None:
        base_rows = list(prompts.reference)
    else:
        raise ValueError(
            f"{prompts.name}: its rows have no `output` to compare with: give --reference"
        )
    student, baseline = student_rows[0].generator, base_rows[0].generator
    settings = {
        "student": judge.name, "model": judge.model, "revision": judge.revision,
        "sampling": judge.recorded_sampling, "template": TEMPLATE,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    # No hash of the outputs: the key of a verdict is a hash of its prompt, which contains them.
    header = settings | {"outputs_of": student, "baseline": baseline}
    with Journal(folder / "verdicts.jsonl", header) as journal:
        verdicts = Verdicts(journal, base_rows, student_rows, judge.name)
        if verdicts.marked:
            note(
                f"{verdicts.marked} texts contain control tokens of chat templates, which could end"
                " their part of the judge's prompt: the judge sees them with a space inserted"
            )
        chats = verdicts.chats()
        if chats:
            answer_chats(
                judge, chats, verdicts.take, unit="verdicts", patience=patience,
                log=folder / "judge.log", send_keys=send_keys, approve=approve,
                progress=progress, report=report,
            )  # fmt: skip
        missing = verdicts.missing()
        annotations = verdicts.annotations()
        if missing:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(missing.items()))
            note(
                f"{missing.total()} prompts have no verdict ({reasons}) and are unscored: run the"
                f" same command again to retry them{advise(sorted(missing))}"
            )
        unscored = sum(row["preference"] is None for row in annotations)
        if unscored == len(annotations):
            raise ValueError(
                f"no verdict of {judge.name} can be parsed: neither m nor M is among the "
                "top_logprobs of its replies; see verdicts.jsonl, or choose another judge"
            )
        record = {
            "title": title(prompts, judge, baseline=baseline, own_reference=reference is None),
            "student": student,
            "baseline": baseline,
            "judge": settings,
            "prompts": {
                "name": prompts.name, "hash": prompts.hash, "count": len(prompts.instructions)
            },
            "length_controlled": prompts.is_alpaca_eval,
            "unscored": unscored,
            "empty": sum(not row["output_2"].strip() for row in annotations),
            "reordered": reordered,
        }  # fmt: skip
        # Inside the lock: another process must not replace these files by older ones.
        write_json(folder / ANNOTATIONS, annotations)
        record["annotations_sha256"] = file_sha256(folder / ANNOTATIONS)
        write_json(folder / RECORD, record | {"sha256": _record_hash(record)})
    return read_result(folder)


class Verdicts:
    """All verdicts on one student's outputs.

    Args:
        journal: Journal that stores the verdicts.
        reference: Outputs of the baseline, one per prompt.
        outputs: Outputs of the student, in the same order.
        judge: Name of the judge in the annotations.
    """

    def __init__(
        self, journal: Journal, reference: Sequence[Output], outputs: Sequence[Output], judge: str
    ) -> None:
        self._journal = journal
        self._reference = reference
        self._outputs = outputs
        self._judge = judge
        self._prompts: Sequence[str] = ()
        self._annotate()  # only to learn the prompts; answers may still be missing

    @property
    def marked(self) -> int:
        """Number of outputs and prompts that contain control tokens of chat templates."""
        texts = [
            text
            for output in (*self._reference, *self._outputs)
            for text in (output.instruction, output.output)
        ]
        return sum(map(has_chat_marks, texts))

    def chats(self) -> list[Chat]:
        """Return the requests to the judge for all missing verdicts."""
        to_messages = import_alpaca_eval().utils.prompt_to_chatml
        return [
            Chat(key=key, messages=to_messages(prompt))
            # By key, so that equal outputs for equal prompts are judged once.
            for key, prompt in {_key(prompt): prompt for prompt in self._prompts}.items()
            # A reply without log-probabilities cannot be weighed, so the judge is asked again.
            if not self._journal.lines.get(key, {}).get("logprobs")
        ]

    def take(self, result: ChatResult) -> None:
        """Record the result of a request.

        Raises:
            EndpointError: If none of the first replies has log-probabilities.
        """
        reply = result.reply
        if reply is None:
            self._journal.add(result.key, reason=result.reason, detail=result.detail)
            return
        if problem := verdict_problem(reply):
            raw = reply.message or reply.text
            ending = f"finish_reason {reply.served_finish_reason}: {shorten(raw)}"
            self._journal.add(result.key, reason=problem, detail=ending, raw=raw)
        else:
            self._journal.add(result.key, text=reply.text, logprobs=reply.logprobs)
        lines = [line for line in self._journal.lines.values() if "text" in line or "raw" in line]
        # With fewer prompts than that, the replies to all of them decide. Equal prompts are asked
        # once.
        enough = len(lines) >= min(_GIVE_UP_AFTER, len(set(self._prompts)))
        if enough and not any(line.get("logprobs") for line in lines):
            reasons = Counter(str(line["reason"]) for line in lines if "reason" in line)
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            raise EndpointError(
                f"judge {self._judge}: none of its first {len(lines)} replies comes with "
                "log-probabilities, by which AlpacaEval 2.0 weighs the verdicts: "
                + (
                    f"{listed}{advise(reasons)}"
                    if reasons
                    else "use a server that sends `top_logprobs` (vLLM does)"
                )
            )

    def missing(self) -> Counter[str]:
        """Return the number of missing verdicts by reason; the next run requests them again."""
        counts: Counter[str] = Counter()
        for chat in self.chats():
            line = self._journal.lines.get(chat.key, {})
            otherwise = "no log-probabilities" if "text" in line else "not asked yet"
            counts[line.get("reason", otherwise)] += 1
        return counts

    def annotations(self) -> list[dict[str, Any]]:
        """Return the annotations in AlpacaEval's format, one per prompt, in prompt order.

        Returns:
            Rows with instruction, output_1 (of the baseline), generator_1, output_2 (of the
            student), generator_2, annotator, and preference in [1, 2]: 1 if the baseline is better,
            2 if the student is; None if there is no verdict or it could not be parsed.
        """
        return [
            {
                "instruction": base.instruction,
                "output_1": base.output,
                "generator_1": base.generator,
                "output_2": output.output,
                "generator_2": output.generator,
                "annotator": self._judge,
                "preference": preference,
            }
            for base, output, preference in zip(
                self._reference, self._outputs, self._annotate(), strict=True
            )
        ]

    def _annotate(self) -> list[float | None]:
        """Return the preferences that alpaca_eval computes from the answers so far."""
        shown = [
            [
                {
                    "instruction": split_chat_marks(output.instruction),
                    "output": split_chat_marks(output.output),
                    "generator": output.generator,
                }
                for output in side
            ]
            for side in (self._reference, self._outputs)
        ]
        # The package prints a useless progress bar with a single step to stderr.
        with without_root_log(), contextlib.redirect_stderr(io.StringIO()):
            # is_ordered joins by position; joining by text would multiply repeated prompts.
            # One chunk, because `_answer` keeps the prompts of its last call only.
            rows = _create_annotator(self._judge, self._answer).annotate_head2head(
                *shown, is_ordered=True, chunksize=None
            )
        preferences = [row["preference"] for row in rows]
        return [None if p is None or math.isnan(p) else float(p) for p in preferences]

    def _answer(self, prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        """Return the answers in the form of the package's clients; a missing one has no tokens."""
        self._prompts = list(prompts)
        completions = []
        for prompt in prompts:
            line = self._journal.lines.get(_key(prompt), {})
            completions.append(
                # Without tokens the package's parser fails, and the package records no preference.
                {"text": line.get("text") or " ", "logprobs": {"content": line.get("logprobs")}}
            )
        zeros = [0.0] * len(completions)
        return {
            "completions": [completion["text"] for completion in completions],
            "completions_all": completions,
            "price_per_example": zeros,
            "time_per_example": zeros,
        }


def verdict_problem(reply: Reply) -> str | None:
    """Return in one word why a judge's reply is no verdict; None if it is one."""
    # The log-probabilities would be those of the thinking, not of the verdict.
    if reply.reasoning is not None or split_thinking(reply.text)[0] is not None:
        return "thinking"
    if not _is_verdict_token(reply.logprobs):
        return "no-verdict"
    # A content that is no text is no verdict, however the reply ended.
    if reply.message is not None and not reply.text:
        return reply_problem(reply) if reply.finish_reason == "stop" else "no-content"
    problem = reply_problem(reply)
    # One token without text, such as the end of the reply, has log-probabilities all the same.
    return None if problem == "length" and reply.logprobs else problem


def _is_verdict_token(logprobs: Sequence[Any] | None) -> bool:
    """Return whether the first token may be a verdict.

    It is none if more than half of the probability is at a mark of a chat template or at white
    space: its alternatives are other marks, whatever m or M may be among them. A judge that samples
    such a token by chance still has a verdict, because the alternatives alone are weighed.
    """
    first = logprobs[0] if logprobs else None
    token = first.get("token") if isinstance(first, dict) else None
    if not isinstance(token, str) or (token.strip() != "" and not has_chat_marks(token)):
        return True
    logprob = first.get("logprob") if isinstance(first, dict) else None
    return isinstance(logprob, int | float) and logprob < math.log(0.5)


def _create_annotator(judge: str, complete: Callable[..., dict[str, list[Any]]]) -> Any:
    """Return the package's annotator `weighted_alpaca_eval_gpt4_turbo`, with our own client."""
    alpaca = import_alpaca_eval()
    first, second = MARKS
    config = {
        "prompt_template": str(Path(alpaca.constants.EVALUATORS_CONFIG_DIR) / TEMPLATE),
        "fn_completions": "openai_completions",  # YAML can only name a client; replaced below
        "completions_kwargs": {"model_name": "replaced"},
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {
            "numerator_token": first,
            "denominator_tokens": [first, second],
            "is_binarize": False,
        },
        # The parser needs the log-probabilities, which `completions` does not contain.
        "completion_key": "completions_all",
        "batch_size": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "judge", "configs.yaml")
        path.parent.mkdir()
        path.write_text(yaml.safe_dump({judge: config}))
        # No cache: it would be a file in this folder, and the journal already has all verdicts.
        annotator = alpaca.annotators.PairwiseAnnotator(
            annotators_config=path.parent, caching_path=None
        )
    # The annotator is complete: it reads neither the file nor the client's name again.
    annotator.annotators[judge].fn_completions = complete
    return annotator


def _record_hash(record: Mapping[str, Any]) -> str:
    """Return the hash of the content of evaluation.json without the hash itself."""
    content = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
