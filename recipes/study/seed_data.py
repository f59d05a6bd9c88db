"""Create the data that all students of a seed share, such as the first model and the pairs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import StudyConfig
from language_model import WORDS, fine_tune, load_model, new_model
from methods import SCHEDULES
from metrics import TEMPERATURES, PairLogProbs, pair_log_probs, sample_rewards
from pairs import LabelledPair, PromptSplit, label_pairs, restore_flips, sample_pairs, split_prompts
from sp2dpo import AnnotationTable, Scores, compute_betas, load_arm, load_rubric, read_scores
from sp2dpo.files import write_text
from teachers import annotate_pairs
from training import score_out_of_fold
from world import World

RUBRICS = {False: "semantic-gap-blind", True: "semantic-gap"}
"""Rubric by whether the teachers are told the label."""
SP2DPO = SCHEDULES / "sp2dpo.yaml"


@dataclass(frozen=True, kw_only=True)
class LabelledPairs:
    """The pairs of a seed with one set of labels.

    Attributes:
        pairs: The pairs, sorted by pair_id.
        reference: Log-probs of both responses under the first model.
        scores: Out-of-fold reward margins, for MADPO; None in a study without reward models.
    """

    pairs: list[LabelledPair]
    reference: PairLogProbs
    scores: Scores | None


@dataclass(frozen=True, kw_only=True)
class SeedData:
    """The data that all students of a seed share.

    Attributes:
        seed: The seed.
        world: World of the seed, with its facts and tastes.
        split: Which prompts are used for what.
        start: Folder of the first model.
        reference: The first model.
        given: The pairs with the annotators' labels.
        corrected: The pairs with flipped labels restored.
        clean: Pairs of test prompts with right labels.
        clean_reference: Log-probs of `clean` under the first model.
    """

    seed: int
    world: World
    split: PromptSplit
    start: Path
    reference: Any
    given: LabelledPairs
    corrected: LabelledPairs
    clean: list[LabelledPair]
    clean_reference: PairLogProbs


def build_seed(config: StudyConfig, seed: int, folder: Path) -> None:
    """Create a seed's data in a folder; do nothing if the folder is complete."""
    if (folder / "summary.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    world, split = World(seed), split_prompts(seed, **config.prompts)
    model = fine_tune(new_model(seed=seed, **config.model), world, seed=seed, **config.sft)
    model.save_pretrained(folder / "start")
    options = config.pairs
    sampled = sample_pairs(model, world, split.train, each=options["each"], seed=10 * seed)
    pairs = label_pairs(sampled, sharpness=options["sharpness"], flips=options["flips"], seed=seed)
    clean = sample_pairs(model, world, split.test, each=config.clean, seed=10 * seed + 1)
    summary: dict[str, Any] = {"pairs": len(pairs), "clean": len(clean)}
    summary["wrong"] = float(np.mean([pair.difference < 0 for pair in pairs]))
    summary["gap"] = float(np.mean([abs(pair.difference) for pair in pairs]))
    for name, labelled in (("given", pairs), ("corrected", restore_flips(pairs))):
        write_text(folder / f"pairs-{name}.json", json.dumps([asdict(pair) for pair in labelled]))
        if not config.reward_model:
            continue
        settings = {key: value for key, value in config.reward_model.items() if key != "folds"}
        scores = score_out_of_fold(
            folder / "start", labelled, seed=seed, scratch=folder / "scratch",
            folds=config.reward_model["folds"], settings=settings,
        )  # fmt: skip
        scores.table.write_parquet(folder / f"scores-{name}.parquet")
        h = scores.table["reward_margin"].to_numpy()
        is_right = np.array([pair.difference > 0 for pair in labelled])
        summary[f"reward_model_{name}"] = float(((h > 0) == is_right).mean())
    write_text(folder / "clean.json", json.dumps([asdict(pair) for pair in clean]))
    summary["reward"], summary["length"] = {}, 0.0
    for temperature in TEMPERATURES:  # the last temperature is 1, and gives the length
        rewards, responses = sample_rewards(
            model, world, split.test, each=config.samples, temperature=temperature, seed=seed
        )
        summary["reward"][f"{temperature:g}"] = float(rewards.sum(1).mean())
        summary["length"] = float(np.mean([len(response) for response in responses]))
    summary["teachers"] = {
        panel: measure_panel(annotate(config, panel, pairs, seed), pairs) for panel in config.panels
    }
    write_text(
        folder / "summary.json", json.dumps(summary)
    )  # written last, because it marks the folder as complete


def load_seed(config: StudyConfig, seed: int, folder: Path) -> SeedData:
    """Return the data that `build_seed` created."""
    reference = load_model(folder / "start")
    labelled = {}
    for name in ("given", "corrected"):
        pairs = read_pairs(folder / f"pairs-{name}.json")
        labelled[name] = LabelledPairs(
            pairs=pairs,
            reference=pair_log_probs(reference, pairs),
            scores=(
                read_scores(folder / f"scores-{name}.parquet") if config.reward_model else None
            ),
        )
    clean = read_pairs(folder / "clean.json")
    return SeedData(
        seed=seed, world=World(seed), split=split_prompts(seed, **config.prompts),
        start=folder / "start", reference=reference, given=labelled["given"],
        corrected=labelled["corrected"], clean=clean,
        clean_reference=pair_log_probs(reference, clean),
    )  # fmt: skip


def describe_seeds(config: StudyConfig, out: Path) -> list[str]:
    """Return lines about the shared data: means over the seeds, with the smallest and largest."""
    summaries = [
        json.loads((out / f"seed-{seed}" / "summary.json").read_text()) for seed in config.seeds
    ]
    parameters = load_model(out / f"seed-{config.seeds[0]}" / "start").num_parameters()

    def span(*keys: str) -> str:
        values = []
        for summary in summaries:
            value = summary
            for key in keys:
                value = value[key]
            values.append(float(value))
        low, high = min(values), max(values)
        return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"

    lines = [
        f"Students have {parameters:,} parameters and {len(WORDS)} tokens. "
        "Means over the seeds (least to most): the first model's true reward "
        f"{span('reward', '1')} at temperature 1, {span('reward', '0')} greedy, its responses "
        f"{span('length')} tokens; wrong labels {span('wrong')}; difference of the rewards of a "
        f"pair {span('gap')}"
        + (
            f"; reward models rank rightly, out of fold, {span('reward_model_given')} of the pairs."
            if config.reward_model
            else "."
        ),
    ]
    lines += [
        f"Panel {panel}: correlation of its signed gap with the true difference "
        f"{span('teachers', panel, 'correlation')}; of the wrong labels it disputes "
        f"{span('teachers', panel, 'recall')}, and of what it disputes is wrong "
        f"{span('teachers', panel, 'precision')}; beta on average "
        f"{span('teachers', panel, 'beta')}, harmonic {span('teachers', panel, 'harmonic')}."
        for panel in config.panels
    ]
    return [part for line in lines for part in (line, "")]


def annotate(
    config: StudyConfig, panel: str, pairs: list[LabelledPair], seed: int
) -> AnnotationTable:
    """Return the replies of a panel about the pairs."""
    teachers = config.panels[panel]
    rubric = load_rubric(RUBRICS[teachers[0].labelled])
    return annotate_pairs(pairs, teachers, rubric, seed=seed)


def measure_panel(annotations: AnnotationTable, pairs: list[LabelledPair]) -> dict[str, float]:
    """Return how well a panel's gaps match the true differences and find the wrong labels."""
    table = compute_betas(annotations, load_arm(SP2DPO))
    differences = np.array([pair.difference for pair in pairs])
    wrong = differences < 0
    beta = table["beta"].to_numpy()
    # Null if the teachers are told the label, and so cannot dispute it.
    disputed = table["label_disputed"].fill_null(False).to_numpy()
    return {
        "correlation": float(np.corrcoef(table["signed_gap"].to_numpy(), differences)[0, 1]),
        "recall": float(disputed[wrong].mean()),
        "precision": float(wrong[disputed].mean()) if disputed.any() else 0.0,
        "beta": float(beta.mean()),
        "harmonic": float(1 / (1 / beta).mean()),
    }


def read_pairs(path: Path) -> list[LabelledPair]:
    """Return the labelled pairs in a file of `build_seed`."""
    return [LabelledPair(**values) for values in json.loads(path.read_text())]
