"""What `--help` of `train` and `reward` says of the settings.

Repeated here, because the classes that define them import torch; a test compares the two.
"""

import click

TRAIN = {
    "dataset": "Folder, file, or Hub name.",
    "dataset_revision": "Its commit on the Hub.",
    "dataset_split": "The split to read.",
    "columns": "Its columns by the names of a run: prompt=question.",
    "datasets": "Several data sets, which are mixed.",
    "mixture_seed": "Seed of the rows of a mixture.",
    "streaming": "Read the data while training.",
    "shuffle_buffer": "Rows that a stream shuffles.",
    "eval_dataset": "What to evaluate on.",
    "eval_revision": "Its commit on the Hub.",
    "eval_columns": "Its columns by the names of a run.",
    "held_out": "Share of the prompts to evaluate on.",
    "traceback": "Show the traceback of an error.",
    "pair_columns": "Per-pair columns that act on the loss, out of beta, weight, margin, "
    "label_smoothing; none for stock DPO.",
    "missing_values": "Rows without a value: error, drop, or constant (the global beta).",
    "template_errors": "Rows that the chat template refuses: error, or drop.",
    "beta_dpo": "beta-DPO's a; 0 turns it off.",
    "beta_dpo_mode_weight": "Share of a batch that beta-DPO leaves out.",
    "alpha_dpo": "AlphaDPO's alpha; 0 turns it off.",
    "alpha_dpo_gamma": "AlphaDPO's gamma / beta, in nats per token.",
    "gamma_po": "gamma-PO's mean margin, in nats; 0 turns it off.",
    "gamma_po_tau": "gamma-PO's tau.",
    "re_po": "RE-PO's first reliability of the labels; 0 turns it off.",
    "re_po_momentum": "Share of a batch in RE-PO's next reliability.",
    "reference_cache": "A folder that keeps reference log-probs.",
    "global_batch_size": "Pairs per update over all processes.",
    "shared_prompt": "Compute the prompt of a pair once, where that is exact.",
}
"""The settings of `train` that are not TRL's, with their help."""
REWARD = {
    "dataset": "Folder, file, or Hub name.",
    "dataset_revision": "Its commit on the Hub.",
    "dataset_split": "The split to read.",
    "folds": "Number of folds; 1 trains on all prompts.",
    "fold": "The fold that is left out, from 0.",
    "held_out": "Share of the prompts to evaluate on.",
    "traceback": "Show the traceback of an error.",
    "template_errors": "Pairs that the chat template refuses: error, or drop.",
}
"""The settings of `reward` that are not TRL's, with their help."""
_OTHERS = {
    "train": "TRL's DPOConfig and ModelConfig have further settings, such as beta, loss_type, "
    "max_length, learning_rate, model_name_or_path and use_peft: `trl dpo --help` lists them, and "
    "docs/train.md describes what per-pair columns change.",
    "reward": "TRL's RewardConfig and ModelConfig have further settings, such as max_length, "
    "learning_rate, model_name_or_path and use_peft: `trl reward --help` lists them.",
}


class SettingsCommand(click.Command):
    """A command whose help lists the settings that are not options of click."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and after them the settings."""
        super().format_options(ctx, formatter)
        name = self.name or ""
        settings = {"train": TRAIN, "reward": REWARD}[name]
        with formatter.section("Settings (keys of the YAML files, or --KEY VALUE)"):
            formatter.write_dl(list(settings.items()))
            formatter.write_paragraph()
            formatter.write_text(_OTHERS[name])
