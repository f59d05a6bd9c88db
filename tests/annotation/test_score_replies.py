"""A data set's own scores as a teacher's replies: by hand, repeated, published, and as gold."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from sp2dpo.annotation.score_replies import import_scores
from sp2dpo.betas.estimators import JMAMP
from sp2dpo.betas.gaps import compute_gaps
from sp2dpo.diagnostics.gold_scores import export_gold
from sp2dpo.pairs.source_scores import ScoreColumns
from sp2dpo.pairs.sources import Source, open_source, read_rows
from sp2dpo.panel.annotation import parse_annotation
from sp2dpo.panel.rubric import load_rubric
from support.harness import (
    SCHEDULE,
    fail,
    kept_reply,
    pairs_of,
    panel_of,
    run,
    succeed,
    write_panel,
)

BLIND, LABELLED = load_rubric("semantic-gap-blind"), load_rubric("semantic-gap")
TWO = ScoreColumns(chosen="score_chosen", rejected="score_rejected", width=9)
HOW = {"category": "completeness", "confidence": 8}


@pytest.fixture
def scored(new_store):
    """Makes stores whose pairs have these scores of chosen and rejected beside them."""

    def make(*scores, rubric=BLIND, name="run.sqlite"):
        store = new_store(name)
        rows = [
            replace(row, columns={"score_chosen": chosen, "score_rejected": rejected})
            for row, (chosen, rejected) in zip(pairs_of(len(scores)), scores, strict=True)
        ]
        store.corpus.add(Source(name="scored.jsonl"), rows)
        store.record_panel(panel_of("a", rubric=rubric, variants=("direct", "critic")))
        return store, [row.pair.id for row in rows]

    return make


def gaps_of(store, ids):
    table = compute_gaps(store.annotations(), JMAMP)
    gaps = dict(zip(table["pair_id"], table["signed_gap"], strict=True))
    return [gaps[pair_id] for pair_id in ids]


def test_a_difference_is_a_magnitude_with_the_sign_that_the_label_lacks(scored):
    store, ids = scored((10, 1), (8.5, 4), (4, 8.5), (5, 5), (5, 4.9))
    result = import_scores(store, "ultrafeedback", TWO, **HOW)
    assert (result.pairs, result.added, result.known, result.left_out) == (5, 5, 0, Counter())
    # Magnitudes 10, 5, 5, 0, 0 of 10, each with the confidence 8 of 10.
    assert gaps_of(store, ids) == pytest.approx([0.8, 0.4, -0.4, 0, 0])
    replies = list(store.replies(ids[2]))
    assert [(reply.order, reply.better, reply.variant) for reply in replies] == [
        ("chosen-first", "B", "direct"), ("rejected-first", "A", "direct")
    ]  # fmt: skip
    assert {reply.better for reply in store.replies(ids[3])} == {"tie"}


def test_a_reply_is_stored_as_a_teacher_would_have_sent_it(scored):
    store, ids = scored((8.5, 4), (2, 3))
    import_scores(store, "ultrafeedback", TWO, **HOW)
    for reply in store.replies(ids[0]):
        annotation = parse_annotation(reply.raw, BLIND)
        assert annotation.rationale == "score_chosen 8.5, score_rejected 4 of 9" == reply.rationale
        assert (annotation.magnitude, annotation.confidence) == (5, 8)
        assert annotation.category == reply.category == "completeness"
    (teacher,) = store.teachers()
    assert (teacher.name, teacher.model) == ("ultrafeedback", "scores of the data set")
    assert teacher.sampling == {
        "chosen": "score_chosen", "rejected": "score_rejected", "width": 9.0,
        "confidence": 8, "category": "completeness",
    }  # fmt: skip


def test_scores_that_contradict_a_label_are_no_difference_under_the_labelled_protocol(scored):
    store, ids = scored((8.5, 4), (4, 8.5), rubric=LABELLED)
    import_scores(store, "ultrafeedback", TWO, **HOW)
    assert gaps_of(store, ids) == pytest.approx([0.4, 0])
    assert [reply.order for reply in store.replies(ids[0])] == ["chosen-first"]


@pytest.mark.parametrize(
    ("scores", "counts"),
    [(((8.5, 4),), "1 agree, 0 ties"), (((8.5, 4), (5, 5), (9, 2)), "2 agree, 1 tie")],
)
def test_scores_that_only_repeat_the_labels_are_no_blind_teacher(scored, scores, counts):
    store, _ = scored(*scores)
    with pytest.raises(ValueError, match=rf"label of no pair \({counts}\).*semantic-gap-blind"):
        import_scores(store, "ultrafeedback", TWO, **HOW)
    assert store.teachers() == []
    known, _ = scored(*scores, rubric=LABELLED, name="labelled.sqlite")
    assert import_scores(known, "ultrafeedback", TWO, **HOW).added == len(scores)


def test_one_contradicted_label_makes_scores_a_blind_teacher(scored):
    store, ids = scored((8.5, 4), (9, 2), (4.9, 5))
    assert import_scores(store, "ultrafeedback", TWO, **HOW).added == 3
    # 0.1 of 9 is a magnitude of 0 of 10, so the gap is 0, but the reply prefers the other response.
    assert {(each.order, each.better) for each in store.replies(ids[2])} == {
        ("chosen-first", "B"), ("rejected-first", "A")
    }  # fmt: skip


@pytest.mark.parametrize(("agreeing", "suspected"), [(98, False), (99, False), (100, True)])
def test_blind_scores_that_contradict_hardly_a_label_are_suspected(scored, agreeing, suspected):
    # One label of 99 or of 100 is contradicted: not below 1 %. Of 101 it is.
    store, _ = scored(*[(5, 4)] * agreeing, (4, 5), (5, 5))
    result = import_scores(store, "ultrafeedback", TWO, **HOW)
    assert (result.agreeing, result.contradicting, result.blind) == (agreeing, 1, True)
    assert result.repeats_labels is suspected


def test_labelled_scores_are_no_witness_and_not_suspected(scored):
    store, _ = scored(*[(5, 4)] * 3, rubric=LABELLED)
    result = import_scores(store, "ultrafeedback", TWO, **HOW)
    assert (result.agreeing, result.contradicting, result.repeats_labels) == (3, 0, False)


def test_the_command_warns_of_scores_that_may_have_made_the_labels(tmp_path):
    rows = [
        {"prompt": f"q{n}", "chosen": "a", "rejected": "b", "score_chosen": 4 + (n > 0),
         "score_rejected": 4 + (n == 0)}
        for n in range(150)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panel = write_panel(
        tmp_path / "panel.yaml", "http://127.0.0.1:9/v1", rubric="semantic-gap-blind"
    )
    succeed("export-requests", "--pairs", tmp_path / "pairs.jsonl", "--panel", panel,
            "--store", tmp_path / "run.sqlite", "--out", tmp_path / "requests.jsonl")  # fmt: skip
    done = run(
        "import-scores", "--store", tmp_path / "run.sqlite", "--panel", panel, "--teacher",
        "people", "--chosen", "score_chosen", "--rejected", "score_rejected", "--width", "9",
        "--confidence", "10", "--category", "completeness",
    )  # fmt: skip
    assert done.returncode == 0
    assert "the scores contradict 1 of 150 labels" in done.stdout
    assert done.stderr.startswith("warning: so few that the labels may have been made")


def test_a_strength_is_gold_for_other_labels_once_it_is_two_scores(tmp_path):
    # HelpSteer3's strength is negative for the first response. A model's labels are checked.
    strengths, first_is_chosen = (-2, -1, 3, 0), (True, False, True, True)
    rows = [
        {"prompt": f"q{n}", "chosen": "a" if first else "b", "rejected": "b" if first else "a",
         "human_chosen": -strength if first else strength, "human_rejected": 0}
        for n, (strength, first) in enumerate(zip(strengths, first_is_chosen, strict=True))
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = export_gold(
        tmp_path / "pairs.jsonl", tmp_path / "gold.jsonl",
        chosen="human_chosen", rejected="human_rejected",
    )  # fmt: skip
    lines = (tmp_path / "gold.jsonl").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert labels == ["chosen", "rejected", "rejected"]
    assert (result.chosen, result.rejected, result.ties) == (1, 2, 1)


def test_scores_that_prefer_no_response_repeat_no_label(scored):
    store, ids = scored((5, 5), (7, 7))
    assert import_scores(store, "ultrafeedback", TWO, **HOW).added == 2
    assert gaps_of(store, ids) == [0, 0]


def test_a_strength_is_no_blind_teacher_because_its_sign_is_the_label(new_store):
    store = new_store()
    rows = [
        replace(row, columns={"overall": overall})
        for row, overall in zip(pairs_of(3), (-2, 1, 3), strict=True)
    ]
    store.corpus.add(Source(name="helpsteer.jsonl"), rows)
    store.record_panel(panel_of("a", rubric=BLIND))
    names = ScoreColumns(strength="overall", width=3)
    with pytest.raises(ValueError, match=r"3 agree, 0 ties.*export-gold"):
        import_scores(store, "helpsteer", names, **HOW)
    assert store.teachers() == []


def test_votes_are_the_confidence(new_store):
    store = new_store()
    votes = ([-2, -2, -1], [-3, 1, -1], [-1, 1], [0, -1])
    rows = [
        replace(row, columns={"overall": -2, "votes": [{"score": vote} for vote in each]})
        for row, each in zip(pairs_of(4), votes, strict=True)
    ]
    store.corpus.add(Source(name="helpsteer.jsonl"), rows)
    store.record_panel(panel_of("a", rubric=LABELLED))
    names = ScoreColumns(strength="overall", votes="votes", width=3)
    import_scores(store, "helpsteer", names, category="clarity")
    # Magnitude 2 of 3: 7 of 10, half upwards. Agreement 1, 1/3, 0, 1/2: 10, 3, 0, 5 of 10.
    ids = [row.pair.id for row in rows]
    assert gaps_of(store, ids) == pytest.approx([0.7, 0.21, 0, 0.35])
    (reply, *_) = store.replies(ids[1])
    assert (reply.magnitude, reply.confidence) == (7, 3)
    assert reply.rationale == "overall -2 of 3; votes -3, 1, -1"


def test_the_scores_are_one_teacher_among_the_panels(scored):
    store, ids = scored((10, 1), (5, 5), (4, 8.5))
    store.add_replies([
        kept_reply(pair_id, "a", "direct", 10, 5, order=order, better=better)
        for pair_id in ids
        for order, better in (("chosen-first", "A"), ("rejected-first", "B"))
    ])  # fmt: skip
    import_scores(store, "ultrafeedback", TWO, **HOW)
    # JMAMP: the mean of 0.5 and 0.8, of 0.5 and 0, and of 0.5 and -0.4.
    assert gaps_of(store, ids) == pytest.approx([0.65, 0.25, 0.05])
    assert [(each.name, each.model) for each in store.teachers()] == [
        ("a", "model-a"), ("ultrafeedback", "scores of the data set")
    ]  # fmt: skip
    # The panel is not asked for them: its own questions stay as they were.
    assert [teacher.name for teacher in store.panel().teachers] == ["a"]


def test_importing_again_adds_what_is_missing_and_changes_nothing(scored):
    store, _ = scored((10, 1), (3, 7))
    import_scores(store, "ultrafeedback", TWO, **HOW)
    before = list(store.replies())
    again = import_scores(store, "ultrafeedback", TWO, **HOW)
    assert (again.added, again.known) == (0, 2)
    assert list(store.replies()) == before
    other = ScoreColumns(chosen="score_chosen", rejected="score_rejected", width=10)
    with pytest.raises(ValueError, match="give the changed teacher another name"):
        import_scores(store, "ultrafeedback", other, **HOW)
    assert import_scores(store, "wider", other, **HOW).added == 2
    assert store.integrity() == []


def test_pairs_without_scores_are_counted_by_reason(new_store):
    store = new_store()
    first, second, third, fourth = pairs_of(4)
    rows = [
        replace(first, columns={"score_chosen": 1, "score_rejected": 9}),
        replace(second, columns={"score_chosen": "N/A", "score_rejected": 1}),
        replace(third, columns={}),
        replace(fourth, columns={"score_chosen": 9, "score_rejected": 1}),
        # The same pair again, with other scores: neither is right for both rows.
        replace(fourth, row=5, columns={"score_chosen": 2, "score_rejected": 1}),
    ]
    store.corpus.add(Source(name="some.jsonl"), rows)
    store.record_panel(panel_of("a", rubric=BLIND))
    result = import_scores(store, "ultrafeedback", TWO, **HOW)
    assert result.added == 1
    assert result.left_out == {
        "no number in score_chosen": 1,
        "no column score_chosen": 1,
        "several rows with different scores": 1,
    }
    assert result.pairs == result.added + result.left_out.total() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "complete"}, "no category 'complete', did you mean 'completeness'"),
        ({"confidence": 11}, "confidence 11 must be 0 to 10"),
        ({"confidence": None}, "give exactly one of them"),
        ({"teacher": "a"}, "the panel has a teacher a with a server"),
        ({"scores": replace(TWO, width=4)}, "row 1: .*is more than the width 4"),
        (
            {"scores": replace(TWO, chosen="score")},
            r"no pair has scores: no column score \(1\); the columns beside the pairs are "
            "score_chosen, score_rejected",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_stored(scored, change, message):
    store, _ = scored((8.5, 4))
    given = {"teacher": "ultrafeedback", "scores": TWO} | HOW | change
    with pytest.raises(ValueError, match=message):
        import_scores(store, given.pop("teacher"), given.pop("scores"), **given)
    assert store.teachers() == []


def source_of(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(str(path))


def test_the_ratings_of_ultrafeedback_are_found_in_every_comparison_of_a_row(new_store, tmp_path):
    scores = (7.5, 3.0, "N/A", 6.0)
    row = {
        "instruction": "Name a prime.",
        "completions": [
            {"response": f"Number {n}", "model": f"m{n}", "overall_score": score}
            for n, score in enumerate(scores)
        ],
    }
    store, source = new_store(), source_of(tmp_path, row)
    store.corpus.add(source, read_rows(source))
    store.record_panel(panel_of("a", rubric=LABELLED))
    names = ScoreColumns(
        chosen="comparison.chosen_score", rejected="comparison.rejected_score", width=9
    )
    assert import_scores(store, "ultrafeedback", names, **HOW).added == 2
    # The best response against each worse one with a score: 4.5 and 1.5 of 9.
    gaps = compute_gaps(store.annotations(), JMAMP)["signed_gap"].to_list()
    assert sorted(gaps) == pytest.approx([0.8 * 0.2, 0.8 * 0.5])


def test_the_preferences_of_helpsteer3_stay_with_its_pairs(new_store, tmp_path):
    rows = [
        {
            "context": [{"role": "user", "content": f"Question {n}"}],
            "response1": "First", "response2": "Second", "overall_preference": overall,
            "individual_preference": [{"score": vote, "reasoning": "r"} for vote in votes],
        }
        for n, (overall, votes) in enumerate([(-3, (-3, -3, -2)), (1, (1, 1, -1)), (0, (0,))])
    ]  # fmt: skip
    store, source = new_store(), source_of(tmp_path, *rows)
    store.corpus.add(source, read_rows(source))
    store.record_panel(panel_of("a", rubric=LABELLED))
    names = ScoreColumns(
        strength="overall_preference", votes="individual_preference", width=3
    )  # a tie is no pair, so two of three rows are
    assert import_scores(store, "helpsteer", names, category="clarity").added == 2
    gaps = compute_gaps(store.annotations(), JMAMP)["signed_gap"].to_list()
    # Magnitude 10 and confidence 10; magnitude 3 and confidence 3 (two of three agree: 1/3).
    assert sorted(gaps) == pytest.approx([0.09, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of the command line: 40 pairs with scores, of which ten contradict the label."""
    folder = tmp_path_factory.mktemp("scores")
    rows = [
        {"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": f"no {n}",
         "score_chosen": 2 if n < 10 else 9, "score_rejected": 5}
        for n in range(40)
    ]  # fmt: skip
    rows += [{"prompt": "q", "chosen": "left", "rejected": "right", "score_chosen": 5,
              "score_rejected": 5}]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panel = write_panel(folder / "panel.yaml", "http://127.0.0.1:9/v1", rubric="semantic-gap-blind")
    succeed(
        "export-requests", "--pairs", folder / "pairs.jsonl", "--panel", panel,
        "--store", folder / "run.sqlite", "--out", folder / "requests.jsonl",
    )  # fmt: skip
    output = succeed(
        "import-scores", "--store", folder / "run.sqlite", "--panel", panel, "--teacher", "people",
        "--chosen", "score_chosen", "--rejected", "score_rejected", "--width", "9",
        "--confidence", "10", "--category", "completeness",
    )  # fmt: skip
    assert output.splitlines() == [
        "people: 41 pairs = 41 new + 0 known + 0 left out",
        "the scores contradict 10 of 40 labels",
    ]
    schedule = SCHEDULE.read_text().replace("quorum: 3", "quorum: 1")
    (folder / "schedule.yaml").write_text(schedule)
    succeed(
        "schedule", "--store", folder / "run.sqlite", "--schedule", folder / "schedule.yaml",
        "--out", folder / "betas.parquet",
    )  # fmt: skip
    return folder


def test_explain_shows_the_numbers_of_the_data_set(folder):
    name = succeed("export-gold", "--pairs", folder / "pairs.jsonl", "--chosen", "score_chosen",
                   "--rejected", "score_rejected", "--out", folder / "names.jsonl")  # fmt: skip
    assert "41 pairs = 30 right labels + 10 wrong labels + 1 tie" in name.replace("ties", "tie")
    pair_id = json.loads((folder / "names.jsonl").read_text().splitlines()[0])["pair_id"]
    text = succeed("explain", pair_id, "--store", folder / "run.sqlite",
                   "--betas", folder / "betas.parquet")  # fmt: skip
    assert "people" in text
    assert "score_chosen 2, score_rejected 5 of 9" in text
    assert "so the label is disputed" in text


def test_the_scores_are_published_with_their_definition(folder):
    out = folder / "dataset"
    succeed(
        "build", "--store", folder / "run.sqlite", "--betas", folder / "betas.parquet",
        "--out", out, "--license", "cc0-1.0",
    )  # fmt: skip
    (teacher,) = json.loads((out / "manifest.json").read_text())["teachers"]
    assert (teacher["model"], teacher["kept"]) == ("scores of the data set", 82)
    assert teacher["sampling"]["rejected"] == "score_rejected"
    assert "| people | scores of the data set |" in (out / "README.md").read_text()
    succeed("verify", out)


def test_the_report_counts_the_scores_as_a_teacher(folder):
    succeed("report", "--store", folder / "run.sqlite", "--betas", folder / "betas.parquet",
            "--out", folder / "report.html")  # fmt: skip
    assert "people" in (folder / "report.html").read_text()


def test_scores_beside_the_labels_are_gold_for_the_audit(folder):
    gold = folder / "gold.jsonl"
    succeed("export-gold", "--pairs", folder / "pairs.jsonl", "--chosen", "score_chosen",
            "--rejected", "score_rejected", "--out", gold)  # fmt: skip
    lines = [json.loads(line) for line in gold.read_text().splitlines()]
    assert Counter(line["label"] for line in lines) == {"chosen": 30, "rejected": 10}
    text = succeed("audit", "--store", folder / "run.sqlite", "--betas", folder / "betas.parquet",
                   "--gold", gold)  # fmt: skip
    assert "40 pairs with a gap and a known label" in text


def test_gold_that_agrees_with_every_label_is_announced_and_none_is_an_error(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(row))
    result = export_gold(
        pairs, tmp_path / "gold.jsonl", chosen="score_chosen", rejected="score_rejected"
    )
    assert (result.chosen, result.rejected, result.ties) == (1, 0, 0)
    arguments = ("export-gold", "--pairs", pairs, "--chosen", "score_chosen")
    text = fail(*arguments, "--rejected", "score", "--out", tmp_path / "none.jsonl")
    assert "no pair has different scores: no column score (1)" in text
    assert not (tmp_path / "none.jsonl").exists()
