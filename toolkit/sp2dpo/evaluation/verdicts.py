"""Verdicts on pairs of outputs: AlpacaEval's prompts, order and reading, with our client between.

The package `alpaca_eval` writes what the judge is asked (its template, the order of the two outputs
drawn by a seed of its own) and reads what it answers. Its own client gives up a run for one error
and scores what it could not ask as empty, so the asking is ours: patient, resumable, every verdict
kept. Both give the same preferences for the same answers.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sp2dpo.evaluation.models import MARKS
from sp2dpo.evaluation.prompts import Output
from sp2dpo.files import Journal, atomic_write
from sp2dpo.inference.chats import Chat, ChatResult
from sp2dpo.inference.client import EndpointError

TEMPLATE = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
"""AlpacaEval 2.0's: one verdict, no reasoning."""
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
"""Text that holds one would end its place in the judge's prompt."""
_HOPELESS = 20
"""A judge that has sent so many replies without log-probabilities is not asked on."""


class AlpacaEvalMissing(ValueError):
    """The package is not installed."""


def import_alpaca_eval() -> Any:
    """`alpaca_eval`, its log kept down to what matters.

    Raises:
        NoPackage: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pkg_resources, which it imports
            import alpaca_eval.annotators  # noqa: PLC0415 - optional, and slow to import
            import alpaca_eval.utils  # noqa: PLC0415
    except ImportError as error:
        raise AlpacaEvalMissing(
            f"judging needs alpaca_eval ({error}): pip install 'sp2dpo[eval]'"
        ) from error
    logging.getLogger().setLevel(logging.CRITICAL)
    return alpaca_eval


def escape_chat_marks(text: str) -> str:
    """The text with marks of the judge's chat taken apart."""
    for mark in CHAT_MARKS:
        text = text.replace(mark, mark.replace("<|", "<| "))
    return text


class Verdicts:
    """All verdicts on one student's outputs.

    Args:
        journal: where they are kept.
        reference: outputs of the baseline, one for each prompt.
        outputs: of the student, in the same order.
        judge: its name, for the annotations.
    """

    def __init__(
        self,
        journal: Journal,
        reference: Sequence[Output],
        outputs: Sequence[Output],
        judge: str,
    ) -> None:
        self._journal = journal
        self._reference = reference
        self._outputs = outputs
        self._judge = judge
        self._heard = sum("text" in line for line in journal.lines.values())
        self._weighed = sum(bool(line.get("logprobs")) for line in journal.lines.values())
        self._prompts: list[str] = []
        self._annotate(self._collect)

    @property
    def marked(self) -> int:
        """Outputs and prompts that hold marks of the judge's chat."""
        texts = [
            text
            for one in (*self._reference, *self._outputs)
            for text in (one.instruction, one.output)
        ]
        return sum(escape_chat_marks(text) != text for text in texts)

    def chats(self) -> list[Chat]:
        """What is to be asked of the judge."""
        turn = import_alpaca_eval().utils.prompt_to_chatml
        return [
            Chat(key=key, messages=turn(prompt))
            for key, prompt in {_key(prompt): prompt for prompt in self._prompts}.items()
            if not self._journal.lines.get(key, {}).get("logprobs")
        ]

    def take(self, outcome: ChatResult) -> None:
        """Keeps what came of a chat.

        Raises:
            TeacherError: none of the first replies has log-probabilities.
        """
        reply = outcome.reply
        if reply is None:
            self._journal.add(outcome.key, reason=outcome.reason, detail=outcome.detail)
            return
        self._journal.add(outcome.key, text=reply.text, logprobs=reply.logprobs)
        self._heard += 1
        self._weighed += bool(reply.logprobs)
        if not self._weighed and self._heard >= min(_HOPELESS, len(self._prompts)):
            raise EndpointError(
                f"judge {self._judge}: none of its first {self._heard} replies comes with "
                "log-probabilities, by which AlpacaEval 2.0 weighs the verdicts: take a server "
                "that sends `top_logprobs` (vLLM does)"
            )

    def missing(self) -> dict[str, int]:
        """Reason -> how many verdicts never came for it; the next run asks for them again."""
        found: dict[str, int] = {}
        for chat in self.chats():
            line = self._journal.lines.get(chat.key, {})
            otherwise = "no log-probabilities" if "text" in line else "not asked yet"
            reason = line.get("reason", otherwise)
            found[reason] = found.get(reason, 0) + 1
        return found

    def annotations(self) -> list[dict[str, Any]]:
        """AlpacaEval's annotations, one for each prompt, in the prompts' order.

        Returns:
            instruction, output_1 (the baseline's), generator_1, output_2, generator_2, annotator,
            preference: from 1, the baseline is better, to 2, the student is; None where no verdict
            came or none could be read.
        """
        found = self._annotate(self._answers)
        rows = []
        for one, other, said in zip(self._reference, self._outputs, found, strict=True):
            preference: Any = said["preference"]
            if preference is not None:
                preference = None if math.isnan(preference) else float(preference)
            rows.append(
                {
                    "instruction": one.instruction,
                    "output_1": one.output,
                    "generator_1": one.generator,
                    "output_2": other.output,
                    "generator_2": other.generator,
                    "annotator": self._judge,
                    "preference": preference,
                }
            )
        return rows

    def _annotate(self, completions: Callable[..., dict[str, list[Any]]]) -> list[dict[str, Any]]:
        shown = [
            [
                {
                    "instruction": escape_chat_marks(one.instruction),
                    "output": escape_chat_marks(one.output),
                    "generator": one.generator,
                }
                for one in side
            ]
            for side in (self._reference, self._outputs)
        ]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a bar of the package's, of one step
                return _annotator(self._judge, completions).annotate_head2head(
                    *shown, is_ordered=True, chunksize=None
                )
        except _Collected:
            return []

    def _collect(self, prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        self._prompts = list(prompts)
        raise _Collected

    def _answers(self, prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        said = [_completion(self._journal.lines.get(_key(prompt), {})) for prompt in prompts]
        nothing = [0.0] * len(said)
        return {
            "completions": [one["text"] for one in said],
            "completions_all": said,
            "price_per_example": nothing,
            "time_per_example": nothing,
        }


class _Collected(Exception):
    """The prompts of the judge are written, and nothing is to be read yet."""


def _annotator(judge: str, completions: Callable[..., dict[str, list[Any]]]) -> Any:
    """AlpacaEval's annotator, with other completions."""
    alpaca = import_alpaca_eval()
    base = Path(alpaca.constants.EVALUATORS_CONFIG_DIR)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "judge", "configs.yaml")
        config.parent.mkdir()
        config.write_text(yaml.safe_dump({judge: _config(base / TEMPLATE)}))
        annotator = alpaca.annotators.PairwiseAnnotator(
            annotators_config=config.parent, caching_path=None
        )
    annotator.annotators[judge].fn_completions = completions
    return annotator


def _config(template: Path) -> Mapping[str, Any]:
    """As the package's `weighted_alpaca_eval_gpt4_turbo`; the completions are replaced."""
    first, second = MARKS
    return {
        "prompt_template": str(template),
        "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": "replaced"},
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {
            "numerator_token": first,
            "denominator_tokens": [first, second],
            "is_binarize": False,
        },
        "completion_key": "completions_all",
        "batch_size": 1,
    }


def _completion(line: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict as the package's parser takes it."""
    return {"text": line.get("text") or " ", "logprobs": {"content": line.get("logprobs")}}


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


ANNOTATIONS, RECORD = "annotations.json", "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The verdicts on one set of outputs.

    Attributes:
        student: the name of the model.
        folder: where they were read.
        record: evaluation.json: title, judge, baseline, prompts, length_controlled, ...
        table: the annotations as a pandas data frame, in the prompts' order.
    """

    student: str
    folder: Path
    record: Mapping[str, Any]
    table: Any

    @property
    def unscored(self) -> int:
        """Prompts without a verdict that could be read."""
        return int(self.table["preference"].isna().sum())


def write_result(folder: Path, annotations: Sequence[Mapping[str, Any]], record: Any) -> None:
    """Writes annotations.json and, last of all, evaluation.json."""
    for name, said in ((ANNOTATIONS, annotations), (RECORD, record)):
        with atomic_write(folder / name) as path:
            text = json.dumps(said, ensure_ascii=False, indent=1)
            path.write_text(text + "\n", encoding="utf-8")


def read_result(folder: Path) -> EvaluationResult:
    """What `write_result` wrote.

    Raises:
        ValueError: it is something else.
        OSError: it cannot be read.
    """
    import_alpaca_eval()
    import pandas as pd  # noqa: PLC0415 - comes with alpaca_eval

    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder}: no {RECORD}: `sp2dpo evaluate judge` writes it")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        rows = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
        table = pd.DataFrame(rows).astype({"preference": float})
        student = str(record["student"])
        if len(table) != record["prompts"]["count"]:
            raise ValueError(f"{len(table)} rows of {record['prompts']['count']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no result of ours: {error}") from error
    return EvaluationResult(student=student, folder=folder, record=record, table=table)
