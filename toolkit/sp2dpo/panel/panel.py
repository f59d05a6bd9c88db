"""Load panels: which teachers are asked, under which rubric, in which variants."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

from sp2dpo.inference.endpoint import Endpoint, EndpointConfig, Price
from sp2dpo.panel.rubric import Rubric, load_rubric
from sp2dpo.settings import Settings, did_you_mean, number, one_of, rule, validate
from sp2dpo.yaml_files import Keys, read_yaml_file

BUDGETS = ("full", "adaptive")
COVERS = ("signed_gap", "beta")
_NEW_COVERS = "signed_gap"
"""What an adaptive panel covers if neither its file nor the store says it."""


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """What a store records of a teacher on a panel.

    Attributes:
        name: Name of the teacher.
        retries: Number of retries after an unreadable reply.
        price: Price of the model; None if unknown.
        license: Licence of the model; None if not stated.
    """

    name: str
    retries: int
    price: Price | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class PanelRecord:
    """What a store records of a panel, as JSON: no addresses, commands or names of API keys.

    Attributes:
        variants: Variants of the rubric that are asked, in this order.
        budget: `full` or `adaptive`.
        tolerance: Largest change of a gap that an adaptive panel accepts when it stops.
        teachers: Teachers in the order of the panel.
        covers: The gap that must not change further, `signed_gap` or `beta`; the records of earlier
            versions, which lack it, mean `beta`.
    """

    variants: list[str]
    budget: str
    tolerance: float
    teachers: list[TeacherRecord]
    covers: str = "beta"


_RECORD = TypeAdapter(PanelRecord)


def parse_record(text: str) -> PanelRecord:
    """Parse the JSON of a panel's record.

    Raises:
        ValueError: It is not such a record.
    """
    return _RECORD.validate_json(text)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All teachers, and what each is asked.

    Attributes:
        rubric: Instructions and answer format.
        variants: Variants of the rubric that are asked, in this order.
        teachers: Teachers in the order of the file; names are unique.
        budget: `full` asks every teacher every variant of every pair (as in the paper);
            `adaptive` stops when more replies are unlikely to change the gap (ours).
        tolerance: Largest change of a gap that an adaptive panel still accepts when it stops, in
            (0, 1]. 0.074 corresponds to 0.02 in beta under the paper's schedule.
        covers: The gap that must not change further: `signed_gap`, which may be below 0 under the
            blind protocol, or `beta`, for which gaps below 0 count as 0. Both are JMAMP's gap
            (`estimators.JMAMP`) and cover no other, see `compute.explain_uncovered`. None if the
            panel does not say it: then what the store has settled pairs by, or `signed_gap` in a
            new store.
    """

    rubric: Rubric
    variants: tuple[str, ...]
    teachers: tuple[Endpoint, ...] = field(default_factory=tuple)
    budget: str = "full"
    tolerance: float = 0.074
    covers: str | None = None

    def with_covers(self, recorded: PanelRecord | None) -> "Panel":
        """Return this panel with `covers`: its own, an adaptive record's, or the default.

        Pairs that were settled by one rule would be asked about again under another. So a panel
        that does not say which it wants goes on with that of the store.

        Args:
            recorded: The last panel of the store; None if there is none.
        """
        if self.covers is not None:
            return self
        if recorded is not None and recorded.budget == "adaptive":
            return replace(self, covers=recorded.covers)
        return replace(self, covers=_NEW_COVERS)

    def record(self) -> PanelRecord:
        """Return what a store records of this panel."""
        return PanelRecord(
            variants=list(self.variants),
            budget=self.budget,
            tolerance=self.tolerance,
            covers=self.covers or _NEW_COVERS,
            teachers=[
                TeacherRecord(
                    name=teacher.name,
                    retries=teacher.retries,
                    price=teacher.price,
                    license=teacher.license,
                )
                for teacher in self.teachers
            ],
        )

    @property
    def sees_images(self) -> bool:
        """Whether all teachers see images."""
        return all(teacher.sees_images for teacher in self.teachers)

    @property
    def api_key_variables(self) -> list[str]:
        """Names of the environment variables that hold the teachers' API keys."""
        return [teacher.api_key_env for teacher in self.teachers if teacher.api_key_env]

    def questions(self) -> int:
        """Number of questions per pair and teacher under a full budget."""
        # The number of orders is the same for every pair, so any id will do.
        return len(self.variants) * len(self.rubric.orders("0"))


class PanelConfig(Settings):
    """Teachers, and what each of them is asked."""

    model_config = ConfigDict(title="SP2DPO panel")

    # `Any`, because a validator replaces the name by the rubric itself.
    # pydantic validates in this order: `variants` needs the rubric, `tolerance` the budget.
    rubric: Annotated[Any, rule(lambda value: isinstance(value, str), "text", type="string")]
    """Rubric: semantic-gap, semantic-gap-blind, or a YAML file beside this one."""
    variants: list[str] = Field(json_schema_extra={"minItems": 1, "uniqueItems": True})
    """Variants of the rubric that are asked, in this order."""
    teachers: list[EndpointConfig] = Field(min_length=1)
    """Models that annotate; their names are unique."""
    budget: Annotated[str | None, one_of(BUDGETS)] = None
    """full (the default) asks every teacher every variant of every pair; adaptive stops when more
    replies could hardly change the gap."""
    tolerance: Annotated[float, number(above=0, most=1)] = Panel.tolerance
    """Largest change of a gap that an adaptive panel still accepts when it stops."""
    covers: Annotated[str | None, one_of(COVERS)] = None
    """What an adaptive panel must not change further: signed_gap (the default of a new store;
    another store keeps its own), the gap of SP2DPO, blind with its sign; or beta, which settles
    pairs with a disputed label sooner, but flips, drops and soft labels of them may then differ
    from the full panel's. The same under the labelled protocol. Neither covers label_smoothing:
    latent, which uses single teachers, or schedules with another gap, such as gap: signed."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
        """Yield a problem if two teachers have the same name."""
        # Values are as written and not validated yet, so their types are checked here.
        teachers = values.get("teachers")
        names = [
            teacher["name"]
            for teacher in (teachers if isinstance(teachers, list) else ())
            if isinstance(teacher, dict) and isinstance(teacher.get("name"), str)
        ]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            yield ("teachers",), f"two teachers are called {' and '.join(map(repr, twice))}"

    @field_validator("rubric")
    @classmethod
    def _load_rubric(cls, name: str, info: ValidationInfo) -> Rubric:
        return load_rubric(name, beside=(info.context or {}).get("beside"))

    @field_validator("variants")
    @classmethod
    def _are_of_the_rubric(cls, variants: list[str], info: ValidationInfo) -> list[str]:
        if not variants or len(set(variants)) < len(variants):
            raise ValueError("must name at least one variant, each once")
        if "rubric" not in info.data:  # an invalid rubric reports itself
            return variants
        rubric: Rubric = info.data["rubric"]
        unknown = [name for name in variants if name not in rubric.variants]
        if unknown:
            hints = [f"{name!r}{did_you_mean(name, rubric.variants)}" for name in unknown]
            raise ValueError(
                f"rubric {rubric.name} has no variant {'; no variant '.join(hints)} "
                f"(known: {', '.join(rubric.variants)})"
            )
        return variants

    @field_validator("teachers")
    @classmethod
    def _know_the_format(
        cls, teachers: list[EndpointConfig], info: ValidationInfo
    ) -> list[EndpointConfig]:
        rubric = info.data.get("rubric")  # an invalid rubric reports itself
        unaided = [each.name for each in teachers if each.structured in ("json_object", "none")]
        if rubric is not None and unaided and rubric.undescribed:
            raise ValueError(
                f"{', '.join(unaided)} would not know the format of a reply, because the task of "
                f"the rubric {rubric.name} does not name {', '.join(rubric.undescribed)}: name "
                "it there, or set structured: json_schema_plain"
            )
        return teachers

    @field_validator("tolerance", "covers")
    @classmethod
    def _has_a_budget(cls, value: Any, info: ValidationInfo) -> Any:
        # An invalid budget is not in `data` and reports itself.
        # pydantic does not validate defaults, so this runs only if the file gives the key.
        if "budget" in info.data and info.data["budget"] != "adaptive":
            raise ValueError(f"{info.field_name} requires `budget: adaptive`")
        return float(value) if info.field_name == "tolerance" else value


def load_panel(path: Path | str) -> Panel:
    """Return the panel in a YAML file, with its rubric.

    Raises:
        ValueError: With every problem of the file: line, key, rule and value.
        OSError: The file or its rubric cannot be read.
    """
    path = Path(path)
    source = read_yaml_file(path)
    config = validate(
        PanelConfig, source.values, where=str(path), source=source, beside=path.parent
    )
    return Panel(
        rubric=config.rubric,
        variants=tuple(config.variants),
        teachers=tuple(teacher.build(role="teacher") for teacher in config.teachers),
        budget=config.budget or Panel.budget,
        tolerance=config.tolerance,
        covers=config.covers,
    )
