"""Several YAML files as one run, and the recipes that are meant to be put together."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sp2dpo.training.sweep as sweep_module
from sp2dpo.interrupts import Interrupted
from sp2dpo.replacement import lock_exclusively
from sp2dpo.training import SweepRun, run_sweep
from sp2dpo.training.provenance import trace_rows
from sp2dpo.training.run import check_processes
from sp2dpo.training.run_config import compose, single_config, take_configs
from support.harness import ROOT, recipe
from support.training import BETAS, conversations, parse

pytestmark = [
    # TRL still uses the names that transformers 5.2x deprecates.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]
DPO = ROOT / "recipes" / "dpo"
MODELS, METHODS, ADAPTERS = (
    sorted((DPO / kind).glob("*.yaml")) for kind in ("models", "methods", "adapters")
)


def named(path):
    return path.stem


@pytest.fixture
def files(tmp_path):
    """Writes YAML files; their paths."""

    def write(*texts):
        paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return paths

    return write


def test_a_later_file_replaces_a_key_whole_and_each_line_says_its_file(files):
    composed = compose(files("a: [1, 2]\nb: 5.0e-7\nc: {x: 1}\n", "a: []\nc: {y: 2}\nd: 'no'\n"))
    assert composed.settings == {"a": [], "b": 5e-7, "c": {"y": 2}, "d": "no"}
    assert composed.lines() == [
        "a: []  # 1.yaml", "b: 5.0e-07  # 0.yaml", "c: {y: 2}  # 1.yaml", "d: 'no'  # 1.yaml",
    ]  # fmt: skip
    assert yaml.safe_load("\n".join(composed.lines())) == composed.settings
    with single_config(composed, ["--a", "7"]) as (flag, path, *others):
        assert (flag, others) == ("--config", ["--a", "7"])
        assert yaml.safe_load(Path(path).read_text()) == composed.settings
    assert not Path(path).exists()


def test_configs_are_taken_in_order_wherever_they_stand():
    paths, others = take_configs(["--x", "1", "--config", "a.yaml", "--config=b.yaml", "--y"])
    assert (paths, others) == ([Path("a.yaml"), Path("b.yaml")], ["--x", "1", "--y"])
    for arguments in (["--config"], ["--config", "--x"]):
        with pytest.raises(ValueError, match="--config takes a file"):
            take_configs(arguments)


@pytest.mark.parametrize("text", ["not JSON", "[]", "7", "{"])
def test_a_manifest_that_is_not_readable_does_not_end_a_finished_training(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    rows = Dataset.from_dict({"pair_id": ["a"], "beta": [0.1]})
    origin = trace_rows(str(tmp_path), None, rows, ["beta"])
    assert (origin.schedule, origin.arm, origin.manifest_sha256) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "not a list"),
        ("", "not nothing"),
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "twice"),
    ],
)
def test_what_is_no_file_of_settings_is_said(files, text, message):
    with pytest.raises(ValueError, match=message):
        compose(files("a: 1\n", text))


def test_a_method_is_at_most_six_keys_and_an_adapter_says_nothing_of_the_method():
    for path in METHODS:
        assert 1 <= len(yaml.safe_load(path.read_text())) <= 6, path
    acting = {"pair_columns", "beta", "beta_dpo", "alpha_dpo", "loss_type", "dataset", "output_dir"}
    for path in ADAPTERS:
        assert not acting & yaml.safe_load(path.read_text()).keys(), path


@pytest.mark.parametrize("path", [*MODELS, *METHODS, *ADAPTERS], ids=named)
def test_every_key_is_explained_on_the_line_above(path):
    for above, line in itertools.pairwise(path.read_text().splitlines()):
        if line and not line.startswith("#"):
            assert above.startswith("# "), line


@pytest.mark.parametrize("path", [*MODELS, *ADAPTERS], ids=named)
def test_the_arithmetic_of_a_header_is_right(path):
    text = path.read_text()
    assert "NOT RUN" in text
    assert "--config recipes/dpo/" in text
    batch = re.search(r"# Batch: (\d+) GPUs? x (\d+) pairs x (\d+) steps = (\d+) pairs", text)
    gpus, pairs, steps, global_batch_size = map(int, batch.groups())
    composed = compose([MODELS[0], path]).settings
    assert gpus * pairs * steps == global_batch_size == composed["global_batch_size"]
    assert pairs == composed["per_device_train_batch_size"]
    if path in MODELS:
        memory = re.search(r"([\d.]+)e9 parameters x (\d+) bytes / (\d+) GPUs = ([\d.]+) GB", text)
        billions, size, shared, each = map(float, memory.groups())
        assert shared == gpus
        assert billions * size / shared == pytest.approx(each, abs=0.05)


@pytest.fixture(scope="module")
def small(model_dir, tmp_path_factory):
    """What makes two steps of any recipe on a tiny model of it."""
    folder = tmp_path_factory.mktemp("data")
    columns = {"beta": BETAS, "weight": [1.0, 0.5] * 4}
    Dataset.from_dict(conversations(**columns)).to_parquet(folder / "train.parquet")
    return [
        "--model_name_or_path", model_dir, "--dataset", str(folder), "--max_steps", "2",
        "--held_out", "0.6", "--use_cpu", "true", "--bf16", "false", "--dtype", "float32",
        "--per_device_train_batch_size", "1", "--global_batch_size", "2", "--max_length", "64",
        "--reference_cache", str(folder / "reference"), "--logging_steps", "1", "--eval_steps", "1",
    ]  # fmt: skip


def train_two_steps(script, small, tmp_path, *paths):
    configs = [word for path in paths for word in ("--config", str(path))]
    script.main([*configs, *small, "--output_dir", str(tmp_path / "run"), "--traceback", "true"])
    return json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.parametrize("path", MODELS, ids=named)
def test_two_steps_of_every_model(script, small, tmp_path, capsys, path):
    results = train_two_steps(script, small, tmp_path, path)
    assert results["pair_columns"] == ["beta"]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert (state["global_step"], state["train_batch_size"]) == (2, 1)
    assert results["data"]["columns_sha256"]
    assert (
        "columns_sha256: " + results["data"]["columns_sha256"]
        in (tmp_path / "run" / "README.md").read_text()
    )
    shown = capsys.readouterr().out
    assert "# tuned-beta.yaml" not in shown
    assert shown.count("eval loss") == 2  # once after each step, and not again at the end
    assert results["eval"]["step"] == 2


@pytest.mark.parametrize("path", METHODS, ids=named)
def test_two_steps_of_every_method(script, small, tmp_path, capsys, path):
    results = train_two_steps(script, small, tmp_path, MODELS[0], path)
    method = yaml.safe_load(path.read_text())
    assert results["pair_columns"] == method["pair_columns"]
    columns = ", ".join(method["pair_columns"])
    assert f"pair_columns: [{columns}]  # {path.name}" in capsys.readouterr().out
    assert results["train_loss"] > 0


@pytest.mark.parametrize("path", ADAPTERS, ids=named)
def test_two_steps_of_every_adapter(script, small, model_dir, tmp_path, monkeypatch, path):
    # bitsandbytes packs weights of four bits for some CPUs as soon as they are evaluated, and has
    # no gradient through packed ones. GPUs know no such packing.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    folder = tmp_path / "model"  # wide enough for weights of four bits on a CPU
    config = AutoConfig.from_pretrained(model_dir)
    config.update({"hidden_size": 128, "intermediate_size": 128, "head_dim": 64})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    wide = [*small, "--model_name_or_path", str(folder)]
    results = train_two_steps(script, wide, tmp_path, MODELS[0], path)
    assert results["train_loss"] > 0
    assert (tmp_path / "run" / "adapter_config.json").exists()


def test_a_global_batch_size_that_does_not_divide_is_refused(script, small, capsys):
    config = ["--config", str(MODELS[0])]
    with pytest.raises(SystemExit) as stopped:
        script.main([*config, *small, "--per_device_train_batch_size", "3"])
    assert stopped.value.code == 2
    assert "global_batch_size 2 is not a multiple of 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([*config, *small, "--gradient_accumulation_steps", "4"])
    assert "takes 2 steps of 1 pairs, not gradient_accumulation_steps 4" in capsys.readouterr().err
    args = parse([*config, *small, "--gradient_accumulation_steps", "2"])[1]
    assert args.gradient_accumulation_steps == 2


def test_a_sweep_computes_the_reference_once_and_is_done_once(
    script, small, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "sweep"
    methods = DPO / "methods"
    words = [
        "--out", out, "--engine", "single",
        "--config", DPO / "tiny-demo.yaml", "--config", methods / "tuned-beta.yaml",
        "--arm", methods / "sp2dpo.yaml", "--vary", "beta=0.005,0.3", *small,
        "--global_batch_size", "4", "--eval_strategy", "no",
    ]  # fmt: skip
    words = list(map(str, words))
    cache = words.index("--reference_cache")
    del words[cache : cache + 2]
    sweep, launched = recipe("sweep"), []
    launch = sweep_module._launch

    def run(command, log):
        """Launch the first run; the others do without a process, for its imports."""
        launched.append(command)
        if len(launched) == 1:
            return launch(command, log)
        words = command.index("--config")
        assert command[:words] == launched[0][:words]
        script.main([*command[words:], "--traceback", "true"])
        return 0

    monkeypatch.setattr(sweep_module, "_launch", run)
    assert sweep.main(words) == 0, (out / "sp2dpo.log").read_text()[-2000:]
    rows = {row["run"]: row for row in json.loads((out / "sweep.json").read_text())}
    assert rows.keys() == {"sp2dpo", "beta-0.005", "beta-0.3"}
    assert rows["beta-0.3"]["beta"] == {"mean": 0.3, "min": 0.3, "max": 0.3}
    assert rows["sp2dpo"]["pair_columns"] == ["beta"]
    assert len(list((out / "reference").glob("*/*.parquet"))) == 2  # train and eval, of one run
    assert re.search(r"\nbeta-0.005 +0.005 +3 +\d\.\d{3} \(", capsys.readouterr().out)
    assert len(launched) == 3
    assert sweep.main(words) == 0
    assert "runs, " not in capsys.readouterr().out
    assert len(launched) == 3
    assert sweep.main([*words, "--seed", "5"]) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_a_sweep_over_a_stream_has_no_reference_cache_and_unknown_betas(
    script, model_dir, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "data"
    folder.mkdir()
    Dataset.from_dict(conversations(beta=BETAS)).to_parquet(folder / "train.parquet")
    words = [
        "--out", tmp_path / "sweep", "--config", DPO / "tiny-demo.yaml", "--vary", "seed=1",
        "--model_name_or_path", model_dir, "--dataset", folder, "--streaming", "--eval_dataset",
        folder, "--held_out", "0", "--max_steps", "1", "--use_cpu", "true", "--max_length", "64",
        "--global_batch_size", "2", "--per_device_train_batch_size", "2", "--eval_strategy", "no",
    ]  # fmt: skip
    launched = []

    def run(command, log):
        launched.append(command)
        script.main([*command[command.index("--config") :], "--traceback", "true"])
        return 0

    monkeypatch.setattr(sweep_module, "_launch", run)
    assert recipe("sweep").main(list(map(str, words))) == 0
    assert "--reference_cache" not in launched[0]
    assert re.search(r"\nseed-1 +\S+ +8 +\d\.\d{3} \(", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("seed: 1\n", [], True),
        ("streaming: true\n", [], False),
        ("streaming: true\n", ["--streaming", "false"], True),
        ("seed: 1\n", ["--streaming=yes"], False),
        ("seed: 1\n", ["--streaming", "--seed", "2"], False),
        ("sync_ref_model: true\n", [], False),
    ],
)
def test_a_run_has_a_reference_cache_where_the_log_probs_are_known_before(
    files, text, words, expected
):
    assert SweepRun("a", tuple(files(text)), tuple(words)).can_cache() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["--vary", "beta"], "--vary takes KEY=VALUE"),
        (["--vary", "beta=1,,2"], "--vary takes KEY=VALUE"),
        (["--arm", "nowhere.yaml"], "nowhere.yaml"),
        (["--vary", "beta=1,1"], "two runs have the same name"),
        (["--arm", "sweep.yaml"], "a run cannot be named sweep"),
        (["--arm", "reference.yaml"], "a run cannot be named reference"),
    ],
)
def test_a_sweep_of_nothing_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("sweep.yaml", "reference.yaml"):
        Path(name).write_text("seed: 1\n")
    words = ["--out", tmp_path, "--config", DPO / "tiny-demo.yaml", *arguments]
    assert recipe("sweep").main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("sp2dpo train: row 5 is refused\n", ": sp2dpo train: row 5 is refused"),
        ("sp2dpo train: a\nTraceback\n  x\nsp2dpo train: b\nFAILED\n", ": sp2dpo train: b"),
        ("KeyError: 'x'\n", ""),
        ("", ""),
    ],
)
def test_a_sweep_shows_why_a_run_failed(tmp_path, monkeypatch, files, printed, shown):
    def run(command, log):
        log.write(printed)
        return 3

    monkeypatch.setattr(sweep_module, "_launch", run)
    lines = []
    sweep_run = SweepRun("a", tuple(files("seed: 1\n")), ())
    (result,) = run_sweep([sweep_run], tmp_path / "out", report=lines.append)
    assert result.exit_code == 3
    assert lines[1] == f"a: failed with exit code 3{shown}"


STOPPED = """
import signal, subprocess, sys, time
if sys.argv[1] == "launcher":  # as `accelerate launch`: it ends at SIGTERM, its process goes on
    sys.exit(subprocess.call([sys.executable, __file__, "training", sys.argv[2]]))
def save(number, frame):
    time.sleep(0.3)
    open(sys.argv[2] + "/checkpoint", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[2] + "/begun", "w").close()
time.sleep(100)
"""
SWEEPS = """
import sys
import sp2dpo.training.sweep as sweep
from sp2dpo.interrupts import Interrupted, raise_on_signals
raise_on_signals()
try:
    sweep._launch([sys.executable, *sys.argv[1:]], sys.stderr)
except Interrupted as stopped:
    sys.exit(128 + stopped.number)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_lets_its_run_save_a_checkpoint(tmp_path, number):
    (tmp_path / "run.py").write_text(STOPPED)
    (tmp_path / "sweep.py").write_text(SWEEPS)
    with subprocess.Popen(
        [sys.executable, tmp_path / "sweep.py", tmp_path / "run.py", "launcher", tmp_path],
        stderr=subprocess.DEVNULL,
    ) as sweep:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert sweep.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        sweep.send_signal(number)
        code = sweep.wait(30)
        while number == signal.SIGKILL and not (tmp_path / "checkpoint").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert (tmp_path / "checkpoint").exists()


def test_two_sweeps_in_one_folder_do_not_run_at_once(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "sweep.lock").open("a") as lock:
        lock_exclusively(lock)
        for folder in ("out", "link", "out/../link"):
            with pytest.raises(ValueError, match="another process runs a sweep in this folder"):
                run_sweep([], tmp_path / folder)
    assert run_sweep([], tmp_path / "link") == []


PRINTS = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0")" "$@"
"""
# Slurm's words for two machines: a job runs its script with what follows it, once on each.
SBATCH = """#!/usr/bin/env bash
while [ "$1" != /dev/stdin ]; do shift; done
shift
cat > job.sh
export SLURM_JOB_NODELIST=a,b SLURM_JOB_ID=7
bash -c 'JOB=$$ exec bash job.sh "$@"' job "$@"
"""
SRUN = """#!/usr/bin/env bash
shift
for SLURM_NODEID in 0 1; do SLURM_NODEID=$SLURM_NODEID "$@"; done
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a script where Slurm, hf and sp2dpo only print; the lines."""
    commands = {"sbatch": SBATCH, "srun": SRUN, "sp2dpo": PRINTS, "hf": PRINTS}
    commands["scontrol"] = "#!/usr/bin/env bash\nprintf 'a\\nb\\n'\n"
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(name, *words, **env):
        result = subprocess.run(
            ["bash", DPO / name, *words],
            cwd=tmp_path,
            env=os.environ | env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.splitlines()

    return run


def test_slurm_launches_one_task_on_each_machine(cluster):
    lines = cluster("slurm.sh", "2", "--config", "with blank.yaml", "--seed", "1", GPUS="4")
    machines = [list(group) for key, group in itertools.groupby(lines, "sp2dpo".__eq__) if not key]
    assert len(machines) == 2
    for rank, words in enumerate(machines):
        assert words[words.index("--processes") + 1] == "8"
        assert words[words.index("--machine-rank") + 1] == str(rank)
        assert words[words.index("--main-process-ip") + 1] == "a"
        assert words[words.index("--main-process-port") + 1] == "29507"
        assert words[:3] == ["train", "--engine", "zero3-multinode"]
        after = words[words.index("--resume_from_checkpoint") :]
        resume = ["--resume_from_checkpoint", "true"]
        assert after == [*resume, "--config", "with blank.yaml", "--seed", "1"]


# The launcher warns the job as Slurm does before the time limit, and ends once it hears of it.
WARNED = """#!/usr/bin/env bash
kill -USR1 "$JOB"
for _ in {1..1000}; do [ -e signalled ] && break; sleep 0.01; done
kill -USR1 $$  # ignored: the launcher goes on until its processes have saved
exit CODE
"""


@pytest.mark.parametrize(("code", "ends"), [(1, ["requeued"]), (0, [])])
def test_slurm_queues_a_job_again_that_it_has_warned(cluster, tmp_path, code, ends):
    (tmp_path / "sp2dpo").write_text(WARNED.replace("CODE", str(code)))
    (tmp_path / "scancel").write_text('#!/usr/bin/env bash\necho "$@"\ntouch signalled\n')
    (tmp_path / "scancel").chmod(0o755)
    (tmp_path / "scontrol").write_text(
        '#!/usr/bin/env bash\n[ "$1 $2" = "requeue 7" ] && echo requeued || echo a\n'
    )
    lines = cluster("slurm.sh", "1")
    assert lines == [*["--signal=USR1 7"] * 2, *ends]  # for each machine


def test_a_job_of_the_hub_gets_all_words(cluster):
    lines = cluster(
        "hf-jobs.sh", "--config", "with blank.yaml", IMAGE="me/image", BUCKET="hf://b/run"
    )
    assert lines[:3] == ["hf", "jobs", "run"]
    assert lines[lines.index("--volume") + 1] == "hf://b/run:/out"
    assert lines[-3:] == ["train", "--config", "with blank.yaml"]


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    # As torchrun and accelerate set it; without a GPU, and without use_cpu, nothing joins them.
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = SimpleNamespace(world_size=1)
    with pytest.raises(ValueError, match=r"2 processes were started.*: set use_cpu: true"):
        check_processes(args)
    check_processes(SimpleNamespace(world_size=2))


def test_a_sweep_lets_a_run_save_although_the_signal_comes_twice(tmp_path):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    program = f"""
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path({str(saved)!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""

    def press_twice():
        while not ready.exists():
            time.sleep(0.01)
        for _ in range(2):  # as a terminal and a launcher that both pass it on
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    pressing = threading.Thread(target=press_twice)
    pressing.start()
    with (tmp_path / "log").open("w") as log, pytest.raises(Interrupted):
        sweep_module._launch([sys.executable, "-c", program], log)
    pressing.join()
    assert saved.exists()
