"""Change the files that strangers write, in thousands of ways, and run the commands that read them.

    python tests/attack/fuzz.py                                # a table, as in docs/security.md
    python tests/attack/fuzz.py --count 20000 --seed 7         # a longer attack
    python tests/attack/fuzz.py --seed 7 --case 'rows:17'      # one case again

A case is one change of one file, drawn from (seed, target, number). Its commands run in a fork of a
process that has imported their modules. A finding is an error that no command lets through, an
undocumented exit code, more time or memory than `forks` allows, two readers that disagree, and a
damaged file that is read without a word and with another result. The folder of a case with findings
is left, and the command that repeats it is printed.
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / part for part in ("toolkit", "tests", "spaces/inspector", "recipes/study")]
sys.path[:0] = map(str, PATHS)

from attack.forks import MEGABYTES, SECONDS, innermost, run_fork  # noqa: E402 - by the path above
from attack.inputs import write_inputs  # noqa: E402
from attack.probe import Probe, Refused  # noqa: E402
from attack.targets import TARGETS, copy_files, draw, make_case, preload  # noqa: E402

COUNT = 2100
_SHARES = sum(target.share for target in TARGETS.values())
_TASKS = (("core", 0, 2), ("core", 1, 2), ("train", 0, 1), ("evaluation", 0, 1),
          ("inspector", 0, 1))  # fmt: skip
"""Processes: the group of the targets, the part of their cases, and the number of parts."""
_BATCH = 50
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1",
    # Threads that wait for one another take time, and each takes address space.
    "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2", "MALLOC_ARENA_MAX": "2",
}  # fmt: skip


@dataclass
class Case:
    """A case, and what came of it.

    Attributes:
        target, number, what: The target, the number of the case, and what was changed.
        outcome: `refused`, `same` or `other` (the result), or `ended` by a limit.
        result: What the reader returned.
        seconds: CPU time.
        memory: Peak in MB, without that of the imported modules.
        findings: Pairs of a kind and a text.
        folder: Folder of the case.
    """

    target: str
    number: int
    what: str
    outcome: str = "ended"
    result: object = None
    seconds: float = 0
    memory: float = 0
    findings: list = field(default_factory=list)
    folder: str = ""


def main():
    """Run the attack, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--count", type=int, default=int(os.environ.get("SP2DPO_ATTACKS", COUNT)),
        help=f"number of cases [default: $SP2DPO_ATTACKS or {COUNT}]",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes [default: 0]")
    parser.add_argument("--target", choices=TARGETS, help="attack this target alone")
    parser.add_argument("--case", metavar="TARGET:NUMBER", help="repeat one case")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes [default: 2]")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        home, group, part, parts = json.loads(arguments.process)
        _attack_group(arguments, Path(home), group, part, parts)
        return 0
    home = Path(tempfile.mkdtemp(prefix="attack-"))
    started = time.monotonic()
    cases = _attack(arguments, home)
    print(table(cases))
    seconds = time.monotonic() - started
    print(f"\n{len(cases)} changes of seed {arguments.seed} in {seconds:.0f} s")
    listed = findings(cases, arguments.seed)
    print("\n".join(listed))
    if arguments.case:
        print("\n".join(json.dumps(asdict(case), indent=1) for case in cases))
    if not listed:
        shutil.rmtree(home)
    return 1 if listed else 0


def _attack(arguments, home):
    """Run the processes of the attack, a few at a time, and return their cases."""
    os.environ.update(_ENVIRONMENT, HF_HOME=str(home / "hf"))
    (home / "inputs").mkdir()
    written = run_fork(lambda: write_inputs(home / "inputs"), home / "inputs.log", limited=False)
    if written.status:
        raise RuntimeError(written.text)
    wanted = [task for task in _TASKS if _numbers(arguments, *task)]
    cases = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for folder in pool.map(lambda task: _run_process(home, *task), wanted):
            lines = (folder / "cases.jsonl").read_text().splitlines()
            cases += [Case(**json.loads(line)) for line in lines]
    return cases


def _run_process(home, group, part, parts):
    """Run one process of the attack, each case of which has a limit; return its folder."""
    task = json.dumps([str(home), group, part, parts])
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--process", task], check=True)
    return home / f"{group}-{part}"


def _numbers(arguments, group, part, parts):
    """Return the numbers of the cases of a process, by target."""
    name, _, number = (arguments.case or "").rpartition(":")
    numbers = {}
    for key, target in TARGETS.items():
        if target.group != group:
            continue
        count = max(2, arguments.count * target.share // _SHARES)
        if arguments.target:
            count = arguments.count * (key == arguments.target)
        wanted = range(count) if not number else [int(number)] if key == name else []
        if chosen := [each for each in wanted if each % parts == part]:
            numbers[key] = chosen
    return numbers


def _attack_group(arguments, home, group, part, parts):
    """Run the cases of one process, and write them to `cases.jsonl`."""
    preload(group)
    gc.freeze()  # so that a collection in a fork does not copy the pages of the modules
    folder = home / f"{group}-{part}"
    folder.mkdir()
    idle = run_fork(lambda: None, folder / "idle.log").peak
    with (folder / "cases.jsonl").open("w") as out:
        for name, numbers in _numbers(arguments, group, part, parts).items():
            started = time.monotonic()
            expected = _expected(name, folder / f"{name}-unchanged", home / "inputs")
            for start in range(0, len(numbers), _BATCH):
                batch = numbers[start : start + _BATCH]
                for case in _make_cases(name, batch, arguments.seed, folder, home / "inputs"):
                    is_mended = case.result
                    _run_case(case, arguments.seed, idle)
                    _compare(case, expected, is_mended)
                    out.write(json.dumps(asdict(case)) + "\n")
                    if not case.findings:
                        shutil.rmtree(case.folder)
            done = f"{folder.name}: {name}: {len(numbers)} cases"
            print(f"{done} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _expected(name, folder, inputs):
    """Return what follows from the unchanged files, which no reader may refuse."""
    run_fork(lambda: copy_files(TARGETS[name], folder, inputs), folder.with_suffix(".log"))
    case = Case(target=name, number=0, what="nothing", folder=str(folder))
    _run_case(case, 0, 0)
    if case.outcome != "same" or case.findings:
        raise RuntimeError(f"{name}: the unchanged files: {case}")
    return case.result


def _make_cases(name, numbers, seed, folder, inputs):
    """Return cases whose files are written in a fork: to change a table starts threads."""
    folders = {number: folder / f"{name}-{number}" for number in numbers}

    def make():
        made = {
            number: make_case(TARGETS[name], draw(seed, name, number), path, inputs)
            for number, path in folders.items()
        }
        (folder / "made.json").write_text(json.dumps(made))

    if (ended := run_fork(make, folder / "made.log", limited=False)).status:
        raise RuntimeError(f"{name}: {ended.text}")
    made = json.loads((folder / "made.json").read_text())
    for number, path in folders.items():
        what, is_mended = made[str(number)]
        yield Case(target=name, number=number, what=what, result=is_mended, folder=str(path))


def _run_case(case, seed, idle):
    """Run the reader of a case in a fork, and note what came of it."""
    folder = Path(case.folder)
    answer = folder / "answer.json"

    def read():
        socket.getaddrinfo = _no_address
        os.chdir(folder)
        probe = Probe(folder, draw(seed, case.target, f"{case.number} read"))
        try:
            values = {"outcome": "same", "result": TARGETS[case.target].read(probe)}
        except Refused as refusal:
            values = {"outcome": "refused", "result": str(refusal)}
        answer.write_text(json.dumps(values | {"findings": probe.findings}))

    ended = run_fork(read, folder / "answer.log")
    case.seconds, case.memory = ended.cpu, max(0, ended.peak - idle) / 1024
    with contextlib.suppress(FileNotFoundError):
        for key, value in json.loads(answer.read_text()).items():
            setattr(case, key, value)
    if ended.hung:
        case.findings.append(("time", innermost(ended.text)))
    elif ended.status:
        case.findings.append(("ended", f"{ended.status}: {innermost(ended.text)}"))
    elif "Traceback" in ended.text and not case.findings:
        case.findings.append(("traceback", ended.text[-1500:]))
    if ended.cpu > SECONDS and not ended.hung:
        case.findings.append(("time", f"{ended.cpu:.1f} s"))
    if case.memory > MEGABYTES and idle:
        case.findings.append(("memory", f"{case.memory:.0f} MB"))


def _no_address(*_):
    raise socket.gaierror("no network in this test")


def _compare(case, expected, is_mended):
    """Compare the result of a case with what follows from the unchanged files."""
    if case.outcome != "same" or case.result == expected:
        return
    case.outcome = "other"
    if isinstance(expected, list) and case.result[1:] != expected[1:]:
        return  # what the command prints says so
    if not (is_mended or TARGETS[case.target].is_input):
        case.findings.append(("another result", "without a word"))


def table(cases):
    """Return the outcomes as a Markdown table."""
    by_target = defaultdict(list)
    for case in cases:
        by_target[case.target].append(case)
    lines = [
        "| changed file | changes | refused | same result | other result | slowest (s) "
        "| memory (MB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in [*by_target.items(), ("all", cases)]:
        counts = [
            sum(case.outcome == outcome for case in group)
            for outcome in ("refused", "same", "other")
        ]
        lines.append(
            f"| {name} | {len(group)} | {' | '.join(map(str, counts))} "
            f"| {max(case.seconds for case in group):.1f} "
            f"| {max(case.memory for case in group):.0f} |"
        )
    return "\n".join(lines)


def findings(cases, seed):
    """Return the findings as lines, grouped by target and kind."""
    groups = defaultdict(list)
    for case in cases:
        for kind, text in case.findings:
            place = text.split(":")[0] if kind == "traceback" else ""
            groups[case.target, kind, place].append((case, text))
    lines = []
    for (name, kind, _), group in sorted(groups.items()):
        first = group[0][0]
        lines += ["", f"{name}: {kind} ({len(group)}): {group[0][1]}", f"    files: {first.folder}"]
        for case, _ in group[:4]:
            name = f"{case.target}:{case.number}"
            command = f"python tests/attack/fuzz.py --seed {seed} --case {name!r}"
            lines.append(f"    {command}  # {case.what[:150]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
