"""The panel: which teachers are asked, under which rubric, in which variants."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sp2dpo.inference.endpoint import Endpoint, parse_endpoint
from sp2dpo.panel.rubric import Rubric, load_rubric
from sp2dpo.settings import check_keys, check_type, did_you_mean, read_yaml

BUDGETS = ("full", "adaptive")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All teachers, and what each is asked.

    Attributes:
        rubric: what they are told.
        variants: the rubric's variants that are asked, in this order.
        teachers: in the file's order; names are unique.
        budget: `full` asks every teacher every variant of every pair (the paper's way);
            `adaptive` asks until more replies could hardly move the gap (ours).
        tolerance: by how much a gap may still move when an adaptive panel stops asking, in (0, 1].
            0.074 is 0.02 in beta under SP2DPO's envelope.
    """

    rubric: Rubric
    variants: tuple[str, ...]
    teachers: tuple[Endpoint, ...] = field(default_factory=tuple)
    budget: str = "full"
    tolerance: float = 0.074

    def record(self) -> dict[str, Any]:
        """What a store remembers of a panel, as JSON: who is asked what, under which terms.

        No addresses, no commands and no names of keys.
        """
        return {
            "variants": list(self.variants),
            "budget": self.budget,
            "tolerance": self.tolerance,
            "teachers": [
                {
                    "name": teacher.name,
                    "retries": teacher.retries,
                    "price": None if teacher.price is None else asdict(teacher.price),
                    "license": teacher.license,
                }
                for teacher in self.teachers
            ],
        }

    def questions(self) -> int:
        """Replies that a full budget takes for each pair and teacher."""
        return len(self.variants) * len(self.rubric.orders("0"))


def load_panel(path: Path) -> Panel:
    """The panel in a YAML file, all its problems found before anything is asked.

    Raises:
        ValueError: naming the file, the key and the value.
        OSError: the file or its rubric cannot be read.
    """
    where = str(path)
    said = read_yaml(path)
    check_keys(
        where, said, required=("rubric", "variants", "teachers"), optional=("budget", "tolerance")
    )
    check_type(where, "rubric", said["rubric"], str)
    check_type(where, "teachers", said["teachers"], list)
    try:
        rubric = load_rubric(said["rubric"], beside=path.parent)
    except ValueError as error:
        raise ValueError(f"{where}: rubric: {error}") from error
    if not said["teachers"]:
        raise ValueError(f"{where}: teachers is empty")
    teachers = tuple(
        parse_endpoint(one, where=f"{where}: teacher {number}", beside=path.parent)
        for number, one in enumerate(said["teachers"], 1)
    )
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two teachers are called {name!r}")
    return Panel(
        rubric=rubric,
        variants=_variants(where, said["variants"], rubric),
        teachers=teachers,
        **_budget(where, said),
    )


def _budget(where: str, said: dict[str, Any]) -> dict[str, Any]:
    if "budget" not in said:
        if "tolerance" in said:
            raise ValueError(f"{where}: tolerance belongs to `budget: adaptive`")
        return {}
    if said["budget"] not in BUDGETS:
        hint = did_you_mean(said["budget"], BUDGETS)
        raise ValueError(f"{where}: budget {said['budget']!r} is not known{hint} (full, adaptive)")
    tolerance = said.get("tolerance", Panel.tolerance)
    check_type(where, "tolerance", tolerance, (int, float))
    if not 0 < tolerance <= 1:
        raise ValueError(f"{where}: tolerance {tolerance} must be above 0, at most 1")
    return {"budget": said["budget"], "tolerance": float(tolerance)}


def _variants(where: str, said: Any, rubric: Rubric) -> tuple[str, ...]:
    check_type(where, "variants", said, list)
    if not said or len(set(map(str, said))) < len(said):
        raise ValueError(f"{where}: variants must name at least one variant, each once")
    for name in said:
        check_type(where, "each of variants", name, str)
        if name not in rubric.variants:
            known = list(rubric.variants)
            hint = did_you_mean(name, known)
            raise ValueError(
                f"{where}: rubric {rubric.name} has no variant {name!r}{hint} "
                f"(known: {', '.join(known)})"
            )
    return tuple(said)
