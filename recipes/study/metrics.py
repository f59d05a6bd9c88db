"""Measure a student: its true rewards, KL and accuracy, and which pairs its gradient goes to."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from language_model import log_probs, prompt_ids, response_words, sample
from methods import Method
from pairs import LabelledPair
from sp2dpo.training import LogRatios, Mixture, PairBatch
from world import PARTS, PROMPTS, World

PairLogProbs = tuple[torch.Tensor, torch.Tensor]
"""Log-probs of the chosen and of the rejected responses, (N,) each, in nats."""
TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)


def sample_rewards(
    model: Any, world: World, prompts: Sequence[int], *, each: int, temperature: float, seed: int
) -> tuple[np.ndarray, list[list[int]]]:
    """Sample from a model; return the parts of the true rewards, (N, 4), and the samples.

    Args:
        model: The student.
        world: The world that defines the rewards.
        prompts: Indices into `PROMPTS`.
        each: Number of samples of each prompt; at temperature 0 there is one.
        temperature: Sampling temperature.
        seed: Seed of the samples.
    """
    texts = [PROMPTS[index] for index in prompts for _ in range(each if temperature else 1)]
    responses = sample(model, texts, temperature=temperature, seed=seed)
    rewards = []
    for prompt, response in zip(texts, responses, strict=True):
        words, ended = response_words(response)
        rewards.append(world.rewards(prompt, words, ended=ended))
    return np.array(rewards), responses


def judge_rewards(
    rewards: np.ndarray,
    responses: Sequence[Sequence[int]],
    judge: Mapping[str, float],
    *,
    name: str,
) -> np.ndarray:
    """Return what a judge takes for the rewards of samples, (N,).

    Args:
        rewards: Parts of the true rewards, (N, 4).
        responses: The samples.
        judge: `noise`, standard deviation of the judge's error on one sample, and `length_bias`,
            reward for each token; empty for a judge without errors.
        name: Name of the run, which seeds the errors: equal errors would cancel between the trials
            that are compared.
    """
    true = rewards.sum(1)
    if not judge:
        return true
    lengths = np.array([len(response) for response in responses])
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(len(true))
    return true + judge["length_bias"] * lengths + judge["noise"] * noise


def measure_student(
    model: Any,
    reference: Any,
    world: World,
    *,
    validation: Sequence[int],
    test: Sequence[int],
    clean: Sequence[LabelledPair],
    clean_reference: PairLogProbs,
    each: int,
    each_at_one: int,
    judge: Mapping[str, float],
    name: str,
    seed: int,
) -> dict[str, Any]:
    """Return all measurements of one student.

    Args:
        model: The student.
        reference: The model from which it started.
        world: The world that defines the true reward.
        validation: Prompts on which trials are chosen.
        test: Prompts on which reported numbers are measured.
        clean: Pairs of test prompts with right labels.
        clean_reference: Log-probs of `clean` under the reference.
        each: Number of samples of each prompt and temperature.
        each_at_one: Number of samples of each test prompt at temperature 1.
        judge: Judge of the validation samples, see `judge_rewards`; empty for the true reward.
        name: Name of the run.
        seed: Seed of the samples, the same for all students of a seed.

    Returns:
        reward: Mean true reward on the test prompts, by temperature.
        parts: Mean of each part of that reward at temperature 1.
        length: Mean number of tokens of a response at temperature 1.
        kl: KL of the student from the reference in nats per response, estimated from its samples
            at temperature 1.
        validation: Mean reward at temperature 1 on the validation prompts, as judged.
        accuracy: Share of the clean pairs with D > 0.
    """
    result: dict[str, Any] = {"reward": {}}
    rewards, responses = np.empty((0, len(PARTS))), []
    for temperature in TEMPERATURES:  # the last temperature is 1, and its samples are used below
        number = each_at_one if temperature == 1 else each
        rewards, responses = sample_rewards(
            model, world, test, each=number, temperature=temperature, seed=seed
        )
        result["reward"][f"{temperature:g}"] = float(rewards.sum(1).mean())
    prompts = [prompt_ids(PROMPTS[index]) for index in test for _ in range(each_at_one)]
    result["parts"] = rewards.mean(0).tolist()
    result["length"] = float(np.mean([len(response) for response in responses]))
    kl = log_probs(model, prompts, responses) - log_probs(reference, prompts, responses)
    result["kl"] = kl.mean().item()
    rewards, responses = sample_rewards(
        model, world, validation, each=2 * each, temperature=1.0, seed=seed + 1
    )
    result["validation"] = float(judge_rewards(rewards, responses, judge, name=name).mean())
    is_right = log_ratio_differences(model, clean, clean_reference) > 0
    result["accuracy"] = is_right.double().mean().item()
    return result


def pair_log_probs(model: Any, pairs: Sequence[LabelledPair]) -> PairLogProbs:
    """Return the (N,) log-probs of the chosen and of the rejected responses, in nats."""
    prompts = [prompt_ids(PROMPTS[pair.prompt]) for pair in pairs]
    return (
        log_probs(model, prompts, [pair.chosen for pair in pairs]),
        log_probs(model, prompts, [pair.rejected for pair in pairs]),
    )


def log_ratio_differences(
    model: Any, pairs: Sequence[LabelledPair], reference: PairLogProbs
) -> torch.Tensor:
    """Return D, the log-ratio of chosen minus that of rejected, (N,), in nats."""
    chosen, rejected = pair_log_probs(model, pairs)
    return (chosen - reference[0]) - (rejected - reference[1])


def measure_gradient(
    model: Any,
    pairs: Sequence[LabelledPair],
    reference: PairLogProbs,
    table: pl.DataFrame,
    deciles: np.ndarray,
    method: Method,
) -> dict[str, Any]:
    """Return how the gradient of the next step would be spread over a method's pairs.

    Args:
        model: The student in its current state.
        pairs: Pairs sorted by pair_id.
        reference: Their log-probs under the first model.
        table: The method's betas, weights and margins, sorted by pair_id.
        deciles: (N,) decile of each pair by SP2DPO's beta, from 0; the same for all methods.
        method: The method whose loss is used; online corrections of the loss are left out.

    Returns:
        right, wrong, flipped: Mean D of the pairs whose label is right, wrong, or flipped by a
            careless annotator; for the pairs as labelled, not as trained.
        share: Share of the slopes |dl/du| in each decile.
        slope: Mean slope in each decile.
        d: Mean D in each decile, for the pairs as trained.
    """
    u, v = (now - start for now, start in zip(pair_log_probs(model, pairs), reference, strict=True))
    wrong = np.array([pair.difference < 0 for pair in pairs])
    flipped = np.array([pair.flipped for pair in pairs])
    d = (u - v).numpy()
    result: dict[str, Any] = {
        "right": float(d[~wrong].mean()), "wrong": float(d[wrong].mean()),
        "flipped": float(d[flipped].mean()) if flipped.any() else None,
    }  # fmt: skip
    if "flip" in table.columns:
        flip = torch.tensor(table["flip"].to_list())
        u, v = torch.where(flip, v, u), torch.where(flip, u, v)

    def column(name: str, default: float) -> torch.Tensor:
        if name not in table.columns:
            return torch.full_like(u, default)
        return torch.tensor(table[name].to_list(), dtype=torch.float64)

    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]).double()
    batch = PairBatch(
        ratios=LogRatios(
            chosen=u, rejected=v, chosen_length=lengths[:, 0], rejected_length=lengths[:, 1]
        ),
        beta=column("beta", 0.0),
        weight=column("weight", 1.0),
        margin=column("margin", 0.0),
        label_smoothing=column("label_smoothing", method.train.get("label_smoothing", 0.0)),
    )
    names = method.train.get("loss_type", ["sigmoid"])
    slopes = batch.slopes(Mixture(names=names, shares=[1.0], tau=1.0)).numpy()
    slopes = slopes * table["keep"].to_numpy()
    d_trained = (u - v).numpy()
    in_decile = [deciles == decile for decile in range(10)]
    result["share"] = [float(slopes[mask].sum() / slopes.sum()) for mask in in_decile]
    result["slope"] = [float(slopes[mask].mean()) for mask in in_decile]
    result["d"] = [float(d_trained[mask].mean()) for mask in in_decile]
    return result
