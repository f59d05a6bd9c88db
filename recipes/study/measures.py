"""What is measured of a student: true rewards, distance, accuracy, and where its gradient goes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from labelled import LabelledPair
from language_model import log_probs, prompt_ids, sample, words_of
from methods import Method
from sp2dpo.training.batch import Mixture, PairBatch
from sp2dpo.training.losses import LogRatios
from world import PARTS, PROMPTS, World

Sides = tuple[torch.Tensor, torch.Tensor]
"""Log-probs of chosen and of rejected responses, (N,) each."""
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)


def rewards(
    model: Any, world: World, prompts: Sequence[int], *, each: int, temperature: float, seed: int
) -> tuple[np.ndarray, list[list[int]]]:
    """(N, 4) what samples of a model are worth, by `world.PARTS`, and the samples.

    Args:
        model: the student.
        world: that knows.
        prompts: numbers into `PROMPTS`.
        each: samples of each prompt; at temperature 0 one stands for all.
        temperature: of the samples.
        seed: of the draws.
    """
    asked = [PROMPTS[number] for number in prompts for _ in range(each if temperature else 1)]
    said = sample(model, asked, temperature=temperature, seed=seed)
    worth = []
    for prompt, response in zip(asked, said, strict=True):
        words, ended = words_of(response)
        worth.append(world.parts(prompt, words, ended=ended))
    return np.array(worth), said


def of_student(
    model: Any,
    reference: Any,
    world: World,
    *,
    validation: Sequence[int],
    test: Sequence[int],
    clean: Sequence[LabelledPair],
    of_clean: Sides,
    each: int,
    seed: int,
) -> dict[str, Any]:
    """All numbers of one student.

    Args:
        model: the student.
        reference: the model that it started from.
        world: that knows the true reward.
        validation: prompts to choose a trial on.
        test: prompts to report.
        clean: pairs of test prompts whose labels are right.
        of_clean: their log-probs under the reference.
        each: samples of each prompt and temperature.
        seed: of the draws, the same for all students of a seed.

    Returns:
        reward: temperature -> mean true reward on the test prompts; parts: of that at temperature
        1; validation: mean true reward at 1 on the validation prompts; kl: of the student from the
        reference, nats per response, estimated from its samples at 1; length: tokens of a response
        at 1; accuracy: share of the clean pairs with D > 0.
    """
    found: dict[str, Any] = {"reward": {}}
    worth, said = np.empty((0, len(PARTS))), []
    for temperature in TEMPERATURES:  # the last one is 1
        worth, said = rewards(model, world, test, each=each, temperature=temperature, seed=seed)
        found["reward"][f"{temperature:g}"] = float(worth.sum(1).mean())
    asked = [prompt_ids(PROMPTS[number]) for number in test for _ in range(each)]
    found["parts"] = worth.mean(0).tolist()
    found["length"] = float(np.mean([len(one) for one in said]))
    found["kl"] = (log_probs(model, asked, said) - log_probs(reference, asked, said)).mean().item()
    worth, _ = rewards(model, world, validation, each=2 * each, temperature=1.0, seed=seed + 1)
    found["validation"] = float(worth.sum(1).mean())
    found["accuracy"] = (differences(model, clean, of_clean) > 0).double().mean().item()
    return found


def sides(model: Any, pairs: Sequence[LabelledPair]) -> Sides:
    """(N,) log-probs of the chosen and of the rejected responses, in nats."""
    prompts = [prompt_ids(PROMPTS[pair.prompt]) for pair in pairs]
    return (
        log_probs(model, prompts, [pair.chosen for pair in pairs]),
        log_probs(model, prompts, [pair.rejected for pair in pairs]),
    )


def differences(model: Any, pairs: Sequence[LabelledPair], reference: Sides) -> torch.Tensor:
    """(N,) D of pairs, in nats."""
    chosen, rejected = sides(model, pairs)
    return (chosen - reference[0]) - (rejected - reference[1])


def gradient(
    model: Any,
    pairs: Sequence[LabelledPair],
    reference: Sides,
    table: Any,
    deciles: np.ndarray,
    method: Method,
) -> dict[str, Any]:
    """Where the next step's gradient would go, over all pairs that a method trains on.

    Args:
        model: the student as it is.
        pairs: sorted by pair_id.
        reference: their log-probs under the model that it started from.
        table: of the method, sorted likewise.
        deciles: (N,) the decile of each pair by SP2DPO's beta, from 0: the same for all methods.
        method: whose loss is meant; what is online in it is left out.

    Returns:
        right, wrong, flipped: mean D of the pairs whose label is right, wrong, exchanged by a
        careless annotator; as labelled, not as trained. share: of the slopes |dl/du| by decile;
        slope: their mean by decile; d: mean D as trained by decile.
    """
    u, v = (one - start for one, start in zip(sides(model, pairs), reference, strict=True))
    wrong = np.array([pair.difference < 0 for pair in pairs])
    flipped = np.array([pair.flipped for pair in pairs])
    d = (u - v).numpy()
    found: dict[str, Any] = {
        "right": float(d[~wrong].mean()), "wrong": float(d[wrong].mean()),
        "flipped": float(d[flipped].mean()) if flipped.any() else None,
    }  # fmt: skip
    exchanged = torch.tensor(table["flip"].to_list()) if "flip" in table.columns else None
    if exchanged is not None:
        u, v = torch.where(exchanged, v, u), torch.where(exchanged, u, v)

    def column(name: str, otherwise: float) -> torch.Tensor:
        if name not in table.columns:
            return torch.full_like(u, otherwise)
        return torch.tensor(table[name].to_list(), dtype=torch.float64)

    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]).double()
    batch = PairBatch(
        ratios=LogRatios(
            chosen=u, rejected=v, chosen_length=lengths[:, 0], rejected_length=lengths[:, 1]
        ),
        beta=column("beta", 0.0),
        weight=column("weight", 1.0),
        margin=column("margin", 0.0),
        label_smoothing=torch.full_like(u, method.train.get("label_smoothing", 0.0)),
    )
    names = method.train.get("loss_type", ["sigmoid"])
    slopes = batch.slopes(Mixture(names=names, shares=[1.0], tau=1.0)).numpy()
    slopes = slopes * table["keep"].to_numpy()
    trained = (u - v).numpy()
    by_decile = [deciles == number for number in range(10)]
    found["share"] = [float(slopes[one].sum() / slopes.sum()) for one in by_decile]
    found["slope"] = [float(slopes[one].mean()) for one in by_decile]
    found["d"] = [float(trained[one].mean()) for one in by_decile]
    return found
