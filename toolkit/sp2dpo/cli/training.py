"""The command `score`."""

from pathlib import Path

import click

from sp2dpo.cli.options import FILE, print_lines


@click.command()
@click.option(
    "--data",
    required=True,
    help="Data set: a folder written by `build`, or org/name@revision on the Hub.",
)
@click.option(
    "--model",
    required=True,
    help="Reward model: a folder or org/name on the Hub; with --folds, {fold} stands for the fold.",
)
@click.option("--revision", help="Revision of the model on the Hub.")
@click.option(
    "--folds",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="Number of models; each pair is scored by the model of its prompt's fold.",
)
@click.option(
    "--batch-size",
    # A pair is two conversations, which are scored in the same batch.
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Conversations per batch.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    default=2048,
    show_default=True,
    help="Maximum tokens of a conversation; longer ones are truncated at the beginning.",
)
@click.option("--device", help="cpu, cuda, ... [default: a GPU if there is one].")
@click.option("--out", type=FILE, required=True, help="Parquet file to write.")
def score(
    data: str,
    model: str,
    revision: str | None,
    folds: int,
    batch_size: int,
    max_length: int,
    device: str | None,
    out: Path,
) -> None:
    """Score every pair with a reward model, for MADPO and ODPO.

    Safe to interrupt: run the same command again to resume.
    """
    if folds > 1 and "{fold}" not in model:
        raise click.UsageError(
            f"--folds {folds}: put {{fold}} into --model, as in org/model-{{fold}}"
        )
    from sp2dpo.betas.scores import read_scores

    try:
        # These modules import torch, which not every installation has.
        from sp2dpo.training.provenance import display_name, read_split
        from sp2dpo.training.reward_model import Scoring, score_dataset
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    scoring = Scoring(
        data=display_name(data), model=model, revision=revision, folds=folds, max_length=max_length
    )
    rows = read_split(data, "train", None)
    summary = score_dataset(rows, scoring, out, batch_size=batch_size, device=device)
    read_scores(out)  # refuse scores that `schedule` would refuse
    pairs, agreeing = summary.pairs, summary.agreeing
    lines = [
        f"{pairs} pairs: reward margin mean {summary.mean:.4g}, min {summary.minimum:.4g}, max "
        f"{summary.maximum:.4g}; {agreeing} agree with their labels ({agreeing / pairs:.0%})"
    ]
    if summary.resumed:
        lines.insert(0, f"{summary.resumed} pairs were scored before")
    if summary.truncated:
        lines.append(
            f"{summary.truncated} of them longer than {max_length} tokens: cut at the beginning"
        )
    print_lines([*lines, f"wrote {out}"])
