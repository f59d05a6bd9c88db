"""The fields of the inspector for a data set whose arm smooths and exchanges labels."""

import sys

from sp2dpo.betas.arms import compute_betas, load_arm
from sp2dpo.betas.file import BetaTable
from sp2dpo.dataset.build import write_dataset
from sp2dpo.panel.rubric import CHOSEN_FIRST, load_rubric
from sp2dpo.store.store import Store
from support.browser import INSPECTOR
from support.harness import SCHEDULE, filled, kept_reply

sys.path.insert(0, str(INSPECTOR))
import loader


def test_soft_labels_and_exchanged_pairs_become_fields(tmp_path):
    rubric = load_rubric("semantic-gap-blind")
    with Store(tmp_path / "run.sqlite", write=True) as store:
        ids = filled(store, 3, "a", rubric=rubric)
        store.add_replies(
            kept_reply(pair_id, "a", variant, 6, 10, order=CHOSEN_FIRST, better=better)
            for pair_id, better in zip(ids, "ABA", strict=True)
            for variant in ("direct", "critic", "reader")
        )
    with Store(tmp_path / "run.sqlite") as store:
        annotations = store.annotations()
        for name in ("soft-free", "constant"):
            arm = load_arm(SCHEDULE.parent / "arms" / f"{name}.yaml")
            betas = BetaTable(
                table=compute_betas(annotations, arm), arm=arm, annotations_hash=annotations.hash
            )
            write_dataset(store, betas, tmp_path / name, draws=20)
    opened = {}
    for name in ("soft-free", "constant"):
        scratch = tmp_path / f"{name}-scratch"
        scratch.mkdir()
        opened[name] = loader.open_folder(tmp_path / name, scratch, name=name, commit=None)
    fields = opened["soft-free"].fields
    # (1 + 0.6) / 2 and (1 - 0.6) / 2: eps is 0.2 for all, and the second pair is exchanged.
    assert [round(float(eps), 6) for eps in fields["label_smoothing"].values] == [0.2] * 3
    assert list(fields["exchanged"].values) == [0, 1, 0]
    assert {"exchanged", "label_smoothing"}.isdisjoint(opened["constant"].fields)
