"""The command that lets a reward model score pairs."""

from pathlib import Path

import click

from sp2dpo.cli.options import FILE, print_lines


@click.command()
@click.option("--data", required=True, help="A folder that `build` made, or a name on the Hub.")
@click.option(
    "--model",
    required=True,
    help="A reward model: a folder or a name on the Hub; with --folds, {fold} in it.",
)
@click.option("--revision", help="Of a model on the Hub.")
@click.option(
    "--folds",
    type=click.IntRange(min=1, max=100),
    default=1,
    show_default=True,
    help="How many models: each pair is scored by the one of its prompt's fold.",
)
@click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    default=2048,
    show_default=True,
    help="Tokens of a conversation; a longer one loses its beginning.",
)
@click.option("--device", help="cpu, cuda, ...; a GPU if there is one.")
@click.option("--out", type=FILE, required=True, help="The Parquet file to write.")
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
    """Let a reward model score every pair, for MADPO and ODPO.

    Stop it at any moment; the same command goes on.
    """
    if folds > 1 and "{fold}" not in model:
        raise click.UsageError(f"--folds {folds}: say where the fold stands, --model ...{{fold}}")
    import polars as pl
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    from sp2dpo.betas.scores import read_scores

    try:
        from sp2dpo.training.reward_model import Scoring, score_dataset
    except ImportError as error:
        raise ValueError(f"scoring needs PyTorch ({error}): pip install 'sp2dpo[train]'") from error
    try:
        rows = load_dataset(data, split="train")
    except (DatasetsError, OSError) as error:
        raise ValueError(f"{data} cannot be read: {error}") from error
    scoring = Scoring(
        data=Path(data).resolve().name if Path(data).is_dir() else data,
        model=model,
        revision=revision,
        folds=folds,
        max_length=max_length,
    )
    before = score_dataset(rows, scoring, out, batch_size=batch_size, device=device)
    h, cut = read_scores(out).table["reward_margin"], pl.read_parquet(out, glob=False)["cut"].sum()
    right = int((h > 0).sum())
    print_lines(
        [
            *([f"{before} pairs were scored before"] if before else []),
            f"{len(h)} pairs: reward margin mean {h.mean():.4g}, min {h.min():.4g}, max "
            f"{h.max():.4g}; {right} ordered like their labels ({right / len(h):.0%})",
            *(
                [f"{cut} of them longer than {max_length} tokens: cut at the beginning"]
                if cut
                else []
            ),
            f"wrote {out}",
        ]
    )
