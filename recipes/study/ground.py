"""What all students of a seed share: world, first model, pairs, and what is said of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelled import LabelledPair, Split, candidates, corrected, labelled, split
from language_model import WORDS, fine_tune, loaded, new_model
from measures import TEMPERATURES, Sides, rewards, sides
from methods import SCHEDULES
from preset import Preset
from simulated import annotated
from sp2dpo.betas.schedule import load_schedule, schedule_betas
from sp2dpo.betas.scores import Scores, read_scores
from sp2dpo.files import atomic_write
from sp2dpo.panel.rubric import load_rubric
from sp2dpo.store.annotations import AnnotationTable
from students import reward_margins
from world import World

RUBRIC = "semantic-gap-blind"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The pairs of a seed under one labelling.

    Attributes:
        pairs: sorted by pair_id.
        reference: log-probs of both sides under the first model.
        scores: MADPO's reward margins, out of fold.
    """

    pairs: list[LabelledPair]
    reference: Sides
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Ground:
    """All of it.

    Attributes:
        seed: of everything.
        world: facts and tastes.
        split: which prompts are for what.
        start: the folder of the first model.
        reference: that model.
        as_given: the pairs with their labels.
        corrected: with the flips undone.
        clean: pairs of test prompts with right labels.
        of_clean: their log-probs under that model.
    """

    seed: int
    world: World
    split: Split
    start: Path
    reference: Any
    as_given: Labels
    corrected: Labels
    clean: list[LabelledPair]
    of_clean: Sides


def build(preset: Preset, seed: int, folder: Path) -> None:
    """Makes it, and writes it down; `ground.json` comes last and means complete."""
    if (folder / "ground.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    world, cut = World(seed), split(seed, **preset.prompts)
    model = fine_tune(new_model(seed=seed, **preset.model), world, seed=seed, **preset.sft)
    model.save_pretrained(folder / "start")
    how = preset.pairs
    found = candidates(model, world, cut.train, each=how["each"], seed=10 * seed)
    pairs = labelled(found, sharpness=how["sharpness"], flips=how["flips"], seed=seed)
    clean = candidates(model, world, cut.test, each=preset.clean, seed=10 * seed + 1)
    about: dict[str, Any] = {"pairs": len(pairs), "clean": len(clean)}
    about["wrong"] = float(np.mean([pair.difference < 0 for pair in pairs]))
    about["gap"] = float(np.mean([abs(pair.difference) for pair in pairs]))
    for name, some in (("given", pairs), ("corrected", corrected(pairs))):
        scores = reward_margins(
            folder / "start", some, seed=seed, scratch=folder / "scratch",
            folds=preset.reward_model["folds"],
            settings={key: one for key, one in preset.reward_model.items() if key != "folds"},
        )  # fmt: skip
        scores.table.write_parquet(folder / f"scores-{name}.parquet")
        _write(folder / f"pairs-{name}.json", [asdict(pair) for pair in some])
        h = scores.table["reward_margin"].to_numpy()
        right = np.array([pair.difference > 0 for pair in some])
        about[f"reward_model_{name}"] = float(((h > 0) == right).mean())
    _write(folder / "clean.json", [asdict(pair) for pair in clean])
    about["reward"], about["length"] = {}, 0.0
    for temperature in TEMPERATURES:
        worth, said = rewards(
            model, world, cut.test, each=preset.samples, temperature=temperature, seed=seed
        )
        about["reward"][f"{temperature:g}"] = float(worth.sum(1).mean())
        about["length"] = float(np.mean([len(one) for one in said]))
    about["teachers"] = {
        panel: _of_panel(replies(preset, panel, pairs, seed), pairs) for panel in preset.panels
    }
    _write(folder / "ground.json", about)


def read(preset: Preset, seed: int, folder: Path) -> Ground:
    """Reads what `build` wrote."""
    reference = loaded(folder / "start")
    labels = {}
    for name in ("given", "corrected"):
        pairs = _pairs(folder / f"pairs-{name}.json")
        labels[name] = Labels(
            pairs=pairs,
            reference=sides(reference, pairs),
            scores=read_scores(folder / f"scores-{name}.parquet"),
        )
    clean = _pairs(folder / "clean.json")
    return Ground(
        seed=seed, world=World(seed), split=split(seed, **preset.prompts),
        start=folder / "start", reference=reference, as_given=labels["given"],
        corrected=labels["corrected"], clean=clean,
        of_clean=sides(reference, clean),
    )  # fmt: skip


def about(preset: Preset, out: Path) -> list[str]:
    """What all students of the seeds shared, in lines: means over the seeds, least to most."""
    said = [json.loads((out / f"seed-{seed}" / "ground.json").read_text()) for seed in preset.seeds]

    parameters = loaded(out / f"seed-{preset.seeds[0]}" / "start").num_parameters()

    def span(*keys: str) -> str:
        values = []
        for one in said:
            for key in keys:
                one = one[key]
            values.append(float(one))
        low, high = min(values), max(values)
        return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"

    lines = [
        f"Students have {parameters:,} parameters and {len(WORDS)} tokens. "
        "Means over the seeds (least to most): the first model's true reward "
        f"{span('reward', '1')} at temperature 1, {span('reward', '0')} greedy, its responses "
        f"{span('length')} tokens; wrong labels {span('wrong')}; difference of the rewards of a "
        f"pair {span('gap')}; reward models rank rightly, out of fold, "
        f"{span('reward_model_given')} of the pairs.",
    ]
    lines += [
        f"Panel {panel}: correlation of its signed gap with the true difference "
        f"{span('teachers', panel, 'correlation')}; of the wrong labels it disputes "
        f"{span('teachers', panel, 'recall')}, and of what it disputes is wrong "
        f"{span('teachers', panel, 'precision')}; beta on average "
        f"{span('teachers', panel, 'beta')}, harmonic {span('teachers', panel, 'harmonic')}."
        for panel in preset.panels
    ]
    return [part for line in lines for part in (line, "")]


def replies(preset: Preset, panel: str, pairs: list[LabelledPair], seed: int) -> AnnotationTable:
    """What a panel says of the pairs."""
    return annotated(pairs, preset.panels[panel], load_rubric(RUBRIC), seed=seed)


def _of_panel(annotations: AnnotationTable, pairs: list[LabelledPair]) -> dict[str, float]:
    """How well a panel reads: its gaps beside the true ones, and the wrong labels it disputes."""
    table = schedule_betas(annotations, load_schedule(SCHEDULES / "sp2dpo.yaml"))
    true = np.array([pair.difference for pair in pairs])
    beta = table["beta"].to_numpy()
    disputed = table["label_disputed"].to_numpy()
    return {
        "correlation": float(np.corrcoef(table["signed_gap"].to_numpy(), true)[0, 1]),
        "recall": float(disputed[true < 0].mean()),
        "precision": float((true < 0)[disputed].mean()) if disputed.any() else 0.0,
        "beta": float(beta.mean()),
        "harmonic": float(1 / (1 / beta).mean()),
    }


def _pairs(path: Path) -> list[LabelledPair]:
    return [LabelledPair(**said) for said in json.loads(path.read_text())]


def _write(path: Path, content: Any) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content))
