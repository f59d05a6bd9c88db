"""What `sp2dpo verify` finds: data changed by somebody who also mended the manifest."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from support.harness import BUILD, ROOT, fail, run, succeed

ROWS = "data/train-00000-of-00001.parquet"
REPLIES = "annotations/train-00000-of-00001.parquet"
ARMS = ROOT / "recipes" / "schedules" / "arms"


@pytest.fixture
def folder(demo, tmp_path):
    return shutil.copytree(demo / "dataset", tmp_path / "dataset")


def mend(folder, name, **facts):
    """Writes the hash of a changed file into the manifest, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["files"][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))


def change(folder, name, column, values, **facts):
    """Puts other values into a column, and mends the manifest."""
    table = pq.read_table(folder / name)
    at = table.schema.get_field_index(column)
    old_values = table[column].to_pylist()
    new = pa.array(values(old_values), table.schema.field(column).type)
    pq.write_table(table.set_column(at, table.schema.field(column), new), folder / name)
    mend(folder, name, **facts)


def differs(folder, *names):
    """The checks that do not hold, by name; all others must."""
    done = run("verify", folder, "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert not result["consistent"]
    wrong = {check["name"]: check["said"] for check in result["checks"] if not check["holds"]}
    assert tuple(wrong) == names, wrong
    return [wrong[name] for name in names]


def test_what_build_writes_is_consistent(folder):
    output = succeed("verify", folder)
    assert f"consistent: {folder}" in output
    assert "not that a teacher gave them" in output


def test_a_changed_beta_is_found_though_every_hash_is_right(folder):
    change(folder, ROWS, "beta", lambda betas: [0.25, *betas[1:]])
    (message,) = differs(folder, "betas")
    assert message.startswith("beta of 1 pair differs from what the replies give, first ")
    assert "0.25, recomputed 0.2316" in message


def test_a_changed_category_is_found(folder):
    change(folder, ROWS, "category", lambda categories: [(categories[0] + 1) % 8, *categories[1:]])
    (message,) = differs(folder, "betas")
    assert message.startswith("category of 1 pair differs")


@pytest.mark.parametrize("number", [-1, 8, 1000])
@pytest.mark.parametrize(("name", "check"), [(ROWS, "pairs"), (REPLIES, "replies")])
def test_a_category_that_does_not_exist_is_found(folder, number, name, check):
    change(folder, name, "category", lambda categories: [number, *categories[1:]])
    done = run("verify", folder, "--json")
    assert done.returncode == 3, done.stderr
    messages = {each["name"]: each["said"] for each in json.loads(done.stdout)["checks"]}
    assert (
        f"its category is number {number}, and there are only the numbers 0 to 7"
        in (messages[check])
    )


@pytest.mark.parametrize(
    ("column", "value"), [("category", "safety"), ("prompt", "text"), ("pair_id", 7)]
)
def test_a_column_of_another_type_is_found(folder, column, value):
    table = pq.read_table(folder / ROWS)
    at = table.schema.get_field_index(column)
    table = table.set_column(at, column, pa.array([value] * len(table)))
    pq.write_table(table.replace_schema_metadata(None), folder / ROWS)
    mend(folder, ROWS)
    done = run("verify", folder)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("dataset_info:\n", "dataset_info: {config_name: default}\nx:\n"),
        lambda text: text.replace("\nconfigs:\n", "\nconfigs: text\nx:\n"),
        lambda text: text.replace("\nconfigs:\n", "\nconfigs: [[], 1, {config_name: []}]\nx:\n"),
    ],
)
def test_other_configs_on_the_card_are_found(folder, edit):
    card = folder / "README.md"
    card.write_text(edit(card.read_text()))
    (message,) = differs(folder, "card")
    assert "its configs, or the text between the markers, were changed" in message


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("it stays -->\n", "it stays -->  \t\n"),
        lambda text: text.replace("up to here -->\n", "up to here --> "),
        lambda text: "\ufeff" + text,
    ],
)
def test_spaces_after_a_marker_and_a_byte_order_mark_change_nothing(folder, edit):
    card = folder / "README.md"
    card.write_text(edit(card.read_text()))
    assert "consistent" in succeed("verify", folder)


def test_a_changed_text_is_found(folder):
    def append_space(responses):
        responses[0][0]["content"] += " "
        return responses

    change(folder, ROWS, "chosen", append_space)
    wrong = differs(folder, "pairs", "replies", "betas")
    assert "its id is not the hash of its texts" in wrong[0]


def test_a_changed_score_is_found(folder):
    change(
        folder, REPLIES, "magnitude", lambda magnitudes: [(magnitudes[0] + 1) % 11, *magnitudes[1:]]
    )
    wrong = differs(folder, "replies", "betas")
    assert "its raw text says" in wrong[0]


def test_a_changed_raw_text_is_found(folder):
    def change_rationale(raw_replies):
        reply = json.loads(raw_replies[0])
        reply["rationale"] = "another"
        return [json.dumps(reply), *raw_replies[1:]]

    change(folder, REPLIES, "raw", change_rationale)
    wrong = differs(folder, "replies", "betas")
    assert "rationale" in wrong[0]


def test_a_reply_left_out_is_found(folder):
    pq.write_table(pq.read_table(folder / REPLIES).slice(1), folder / REPLIES)
    mend(folder, REPLIES)
    wrong = differs(folder, "replies", "betas")
    assert "863 annotations, the manifest states 864" in wrong[0]


def test_another_schedule_in_the_manifest_is_found(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["schedule"]["beta_max"] = 0.31
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (message,) = differs(folder, "betas")
    assert "recomputed" in message


def test_a_changed_card_is_found_and_words_beside_it_are_not(folder):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(f"{card}\nMine.\n")
    succeed("verify", folder)
    (folder / "README.md").write_text(card.replace("96 preference pairs", "97 preference pairs"))
    (message,) = differs(folder, "card")
    assert "between the markers" in message
    (folder / "README.md").write_text(card.replace("- data/train-", "- data/other-"))
    differs(folder, "card")


def test_damage_is_said_in_words(folder):
    data = bytearray((folder / ROWS).read_bytes())
    data[len(data) // 2] ^= 255
    (folder / ROWS).write_bytes(bytes(data))
    done = run("verify", folder)
    assert done.returncode == 3
    assert f"{ROWS} has another SHA-256" in done.stdout
    (folder / ROWS).write_bytes(b"no Parquet")
    done = run("verify", folder)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    (folder / ROWS).unlink()
    assert f"{ROWS} is missing" in run("verify", folder).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not the manifest of an sp2dpo data set"),
        ("no JSON", "not the manifest of an sp2dpo data set"),
        ('{"toolkit": {"name": "sp2dpo", "version": "9"}, "format": 7}', "of format 7"),
        (
            '{"toolkit": {"name": "sp2dpo"}, "format": 1, "files": {"../x": {"sha256": "0"}}}',
            "not the manifest of an sp2dpo data set",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder, text, message):
    (folder / "manifest.json").write_text(text)
    done = run("verify", folder)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("schedule",), None, "schedule: Field required"),
        (("counts", "rows"), None, "counts.rows: Field required"),
        (("counts", "rows"), "many", "counts.rows: Input should be a valid integer"),
        (("files", ROWS, "sha256"), 7, "sha256: Input should be a valid string"),
        (("teachers",), {}, "teachers: Input should be a valid list"),
    ],
)
def test_a_damaged_manifest_is_an_inconsistency_that_names_the_key(folder, keys, value, words):
    manifest = json.loads((folder / "manifest.json").read_text())
    part = manifest
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = run("verify", folder)
    assert done.returncode == 3
    assert "manifest.json is damaged" in done.stdout
    assert words in done.stdout


@pytest.mark.parametrize("arm", sorted(ARMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_arm_is_recomputed(demo, arm, tmp_path):
    from sp2dpo.betas.arms import load_arm

    scores = ()
    if load_arm(arm).uses_scores:
        ids = pq.read_table(demo / "betas.parquet")["pair_id"].to_pylist()
        table = {"pair_id": ids, "reward_margin": [n % 7 - 2.5 for n in range(len(ids))]}
        pq.write_table(pa.table(table), tmp_path / "scores.parquet")
        scores = ("--scores", tmp_path / "scores.parquet")
    betas, out = tmp_path / "betas.parquet", tmp_path / "out"
    store = ("--store", demo / "run.sqlite")
    succeed("schedule", *store, "--schedule", arm, *scores, "--out", betas)
    succeed(*BUILD, *store, "--betas", betas, "--out", out)
    succeed("verify", out)


def test_other_schedules_stand_in_a_column_each(demo, tmp_path):
    store = ("--store", demo / "run.sqlite")
    for name in ("drop-disputed", "permuted"):
        arm = ARMS / f"{name}.yaml"
        out = tmp_path / f"{name}.parquet"
        succeed("schedule", *store, "--schedule", arm, "--out", out)
    also = [
        ("--also", f"{name}={tmp_path / name}.parquet") for name in ("drop-disputed", "permuted")
    ]
    words = (*BUILD, *store, "--betas", demo / "betas.parquet", *also[0], *also[1])
    succeed(*words, "--out", tmp_path / "out")
    succeed("verify", tmp_path / "out")
    table = pq.read_table(tmp_path / "out/schedules/train-00000-of-00001.parquet")
    rows = pq.read_table(tmp_path / "out" / ROWS)
    assert table.column_names == ["pair_id", "default", "drop-disputed", "permuted"]
    assert table["pair_id"] == rows["pair_id"]
    assert table["default"] == rows["beta"]
    assert 0 < table["drop-disputed"].null_count < len(table)
    permuted_betas = sorted(table["permuted"].to_pylist())
    assert permuted_betas == sorted(
        pq.read_table(tmp_path / "permuted.parquet")["beta"].to_pylist()
    )


def test_a_column_that_cannot_say_it_all_is_refused(demo, tmp_path):
    store = ("--store", demo / "run.sqlite")
    gap = tmp_path / "gap.parquet"
    succeed("schedule", *store, "--schedule", ARMS / "gap-as-weight.yaml", "--out", gap)
    words = (*BUILD, *store, "--betas", demo / "betas.parquet", "--out", tmp_path / "out")
    done = run(*words, "--also", f"mine={gap}")
    assert "this arm also has weight" in done.stderr
    assert "cannot name a schedule" in run(*words, "--also", f"pair_id={gap}").stderr
    assert "write NAME=BETAS.parquet" in run(*words, "--also", "mine").stderr
    twice = ("--also", f"a={gap}", "--also", f"a={gap}")
    assert "names a column twice" in run(*words, *twice).stderr
    assert not (tmp_path / "out").exists()


def test_rows_are_cut_into_files_where_what_they_hold_says(tmp_path):
    from datasets import Features, Value

    from sp2dpo.dataset.parquet import read_rows, write_rows

    rows = [{"n": n, "text": "x" * 100} for n in range(10_000)]
    features = Features({"n": Value("int64"), "text": Value("string")})
    count, names = write_rows(
        rows, features, tmp_path / "many", file_bytes=400_000, group_bytes=200_000
    )
    assert count == 10_000
    assert names == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    parts = read_rows([tmp_path / "many" / name for name in names], ["n"])
    assert [row["n"] for part in parts for row in part] == list(range(10_000))
    assert write_rows([], features, tmp_path / "none") == (0, ["train-00000-of-00001.parquet"])
    assert pq.read_table(tmp_path / "none" / "train-00000-of-00001.parquet").num_rows == 0


def test_the_teachers_are_asked_again(demo, tmp_path):
    words = ("--panel", demo / "panel.yaml", "--store", tmp_path / "again.sqlite")
    done = run("verify", demo / "dataset", "--resample", 10, *words, "--json")
    assert done.returncode == 0, done.stderr
    resampled = json.loads(done.stdout)["resampled"]
    assert resampled["pairs"] == 10
    assert [teacher["teacher"] for teacher in resampled["teachers"]] == [
        "reader-a",
        "reader-b",
        "reader-c",
    ]
    # The demo's teachers repeat what they said.
    assert {
        (teacher["replies"], teacher["same"], teacher["magnitude"])
        for teacher in resampled["teachers"]
    } == {(30, 1, 0)}
    assert (resampled["gap"]["mean"], resampled["gap"]["max"]) == (0, 0)
    output = succeed("verify", demo / "dataset", "--resample", 10, *words)
    assert "asked again: 10 pairs" in output
    assert "mean |difference| 0.000" in output


def test_the_keys_of_hosted_teachers_need_a_confirmation(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("TEACHER_API_KEY", "sk-0123456789")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    panel = yaml.safe_load((demo / "panel.yaml").read_text())
    for teacher in panel["teachers"]:
        teacher |= {"base_url": "https://models.example.com/v1", "api_key_env": "TEACHER_API_KEY"}
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
    words = ("--panel", tmp_path / "panel.yaml", "--store", tmp_path / "again.sqlite")
    command = ("verify", demo / "dataset", "--resample", 2, *words, "--patience", 0)
    flag = ("--send-key", "TEACHER_API_KEY=models.example.com")
    assert " ".join(flag) in fail(*command)
    assert "nothing answers" in fail(*command, *flag)


def test_a_teacher_who_now_says_something_else_shows(demo, scripted, tmp_path):
    panel = yaml.safe_load((demo / "panel.yaml").read_text())
    server = scripted(models=",".join(teacher["model"] for teacher in panel["teachers"]))
    for teacher in panel["teachers"]:
        teacher["base_url"] = server.url
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
    words = ("--panel", tmp_path / "panel.yaml", "--store", tmp_path / "again.sqlite")
    result = json.loads(succeed("verify", demo / "dataset", "--resample", 5, *words, "--json"))
    # The difference is told; the data set is as consistent as before.
    assert result["consistent"]
    resampled = result["resampled"]
    assert {teacher["replies"] for teacher in resampled["teachers"]} == {15}
    assert all(
        teacher["same"] < 1 and teacher["magnitude"] > 0 for teacher in resampled["teachers"]
    )
    assert resampled["gap"]["mean"] > 0


def test_another_panel_is_refused(demo, tmp_path):
    panel = yaml.safe_load((demo / "panel.yaml").read_text())
    panel["teachers"][0]["sampling"]["temperature"] = 0.9
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
    words = ("--panel", tmp_path / "panel.yaml", "--store", tmp_path / "again.sqlite")
    done = run("verify", demo / "dataset", "--resample", 5, *words)
    assert done.returncode == 1
    assert "teacher reader-a: the data set says sampling" in done.stderr
    assert "needs --panel" in run("verify", demo / "dataset", "--resample", 5).stderr
