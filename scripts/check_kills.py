"""Stop every stage at random moments, by kill -9, Ctrl-C and SIGTERM, and see that the same command ends
where it would have.

    python scripts/check_kills.py --work runs/kills --out kills.json
    python scripts/check_kills.py --work runs/kills --stages sft ppo --signals TERM --moments 3

A small chain of the micro-world is made once in --work, and each stage runs once undisturbed. Then, for each
signal, the command is started again and again in a folder of its own and stopped at a random moment, each
time going on from where it was, until it has been stopped --moments times (from the start again where it got
through before); at last it runs to the end.
Checked: the exit codes (137, 130, 143; 0 where it was through already), no process of its session left, the
same files with the same bytes as the undisturbed run's (but for manifests, timings and pictures, which hold
times), and no word of a traceback. Exits 1 where anything is off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LENGTH = "--max-new-tokens 64 --batch-size 16"
TRAIN = "--per-device-train-batch-size 16 --max-length 256 --save-steps 10 --logging-steps 5"
DEMO = "demo --out {out}"
# The small chain; {in_} is the folder that it lies in, {out} the stage's own.
STAGES = {
    "revise": "revise --model {in_}/demo/models/helpful-only --prompts {in_}/demo/world/harmful-sft.jsonl --limit 400"
    " --constitution {in_}/demo/world/constitution.yaml --few-shot none --rounds 2 "
    + LENGTH
    + " --out {out}/revisions.jsonl",
    "sample": "sample --model {in_}/demo/models/helpful-only --prompts {in_}/demo/world/helpful-sft.jsonl --limit 600 "
    + LENGTH
    + " --out {out}/samples.jsonl",
    "sft": "sft --model {in_}/demo/models/base --data {in_}/revise/revisions.jsonl --data {in_}/sample/samples.jsonl"
    " --learning-rate 8e-4 --num-train-epochs 0.5 --held-out 0.05 " + TRAIN + " --out {out}/sl-cai",
    "label": "label --model {in_}/sft/sl-cai --prompts {in_}/demo/world/harmful-label.jsonl --limit 400"
    " --feedback-model {in_}/demo/models/helpful-only --constitution {in_}/demo/world/constitution.yaml "
    + LENGTH
    + " --out {out}/comparisons.jsonl",
    "pmp": "pmp --model {in_}/demo/models/base --posts {in_}/demo/world/posts.xml --format chat --num-train-epochs 0.3"
    " --learning-rate 1e-3 " + TRAIN + " --out {out}/pmp",
    "train-pm": "train-pm --model {in_}/pmp/pmp --comparisons {in_}/label/comparisons.jsonl"
    " --comparisons {in_}/demo/world/human-helpfulness.jsonl --num-train-epochs 0.2 --learning-rate 1e-3 "
    + TRAIN
    + " --out {out}/pm",
    "ppo": "ppo --model {in_}/sft/sl-cai --pm {in_}/train-pm/pm --prompts {in_}/demo/world/rl.jsonl --steps 20"
    " --rollout-batch-size 32 --save-steps 4 --kl-coef 0.2 --max-new-tokens 64 --out {out}/rl-cai",
    "demo": DEMO,
}
SIGNALS = {"KILL": signal.SIGKILL, "INT": signal.SIGINT, "TERM": signal.SIGTERM}
TIMED = ("cai.json", "timings.jsonl", "results.json")  # and manifests and pictures
PATIENCE = 60.0  # Seconds in which a trainer ends its step and writes its checkpoint.


def command(stage: str, inputs: Path, out: Path) -> list[str]:
    words = STAGES[stage].format(in_=inputs, out=out).split()
    return [sys.executable, "-m", "cai_cli", *words]


def start(stage: str, inputs: Path, out: Path) -> subprocess.Popen[str]:
    out.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            command(stage, inputs, out), stdout=log, stderr=log, text=True, start_new_session=True
        )


def finish(stage: str, inputs: Path, out: Path) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    code = start(stage, inputs, out).wait()
    if code:
        raise SystemExit(f"{stage} ended with {code}: see {out}.log")
    return time.monotonic() - began


def session(leader: int) -> list[int]:
    """Process ids of a session, but for those that have ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def left_over(leader: int, patience: float = 10.0) -> list[int]:
    """Processes of the session that are still there after some seconds."""
    deadline = time.monotonic() + patience
    while (alive := session(leader)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive


def contents(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too, with the hash of what is compared of it."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        timed = path.name in TIMED or path.name.endswith(".manifest.json") or path.suffix == ".png"
        found[str(path.relative_to(folder))] = "" if timed else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check(
    stage: str, name: str, work: Path, moments: int, seconds: float, whole_group: bool, seed: int
) -> dict[str, object]:
    """Stop the stage `moments` times and carry it to its end; what came of it."""
    draw = random.Random(f"{seed}/{stage}/{name}")
    number, out = SIGNALS[name], work / "stopped" / f"{stage}-{name}"
    shutil.rmtree(out, ignore_errors=True)
    (out.parent / f"{out.name}.log").unlink(missing_ok=True)
    codes: dict[str, int] = {}
    left = stops = 0
    while stops < moments:
        process = start(stage, work, out)
        try:
            code = process.wait(draw.uniform(0.1, seconds))
        except subprocess.TimeoutExpired:
            if whole_group and number != signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            code = process.wait(PATIENCE)
            stops += code != 0  # it may have been through at that very moment
        alive = left_over(process.pid)
        left += len(alive)
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        shown = str(128 - code if code < 0 else code)
        codes[shown] = codes.get(shown, 0) + 1
        if code == 0:
            if stops < moments:
                shutil.rmtree(out)
            continue
        if int(shown) != 128 + number:
            break
    finish(stage, work, out)
    wanted, found = contents(work / stage), contents(out)
    log = (out.parent / f"{out.name}.log").read_text(encoding="utf-8")
    row = {
        "stage": stage,
        "signal": name,
        "stopped": stops,
        "codes": codes,
        "processes_left": left,
        "other_bytes": sorted(file for file in wanted.keys() & found.keys() if wanted[file] != found[file]),
        "files_too_many": sorted(found.keys() - wanted.keys()),
        "files_missing": sorted(wanted.keys() - found.keys()),
        "traceback": "Traceback" in log or "Exception ignored" in log,
    }
    expected = {"0", str(128 + number)}
    bad = ("processes_left", "other_bytes", "files_too_many", "files_missing", "traceback")
    row["ok"] = codes.keys() <= expected and stops == moments and not any(row[field] for field in bad)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the chain and the stopped runs")
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=list(SIGNALS))
    parser.add_argument("--moments", type=int, default=10, help="times each stage is stopped by each signal")
    parser.add_argument(
        "--group", action="store_true", help="send the signal to all processes of the run, as a terminal does"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # A shell's background job ignores it, and so would all it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = options.work.resolve()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not (work / "demo" / "world").exists():
        made = [sys.executable, "-m", "cai_cli", "demo", "--inputs-only", "--out", str(work / "demo")]
        subprocess.run(made, check=True)
    last = max(list(STAGES).index(stage) for stage in options.stages)
    seconds = {}
    for stage in list(STAGES)[: last + 1]:
        done = work / "seconds" / stage
        if not done.exists():
            done.parent.mkdir(exist_ok=True)
            done.write_text(str(finish(stage, work, work / stage)))
        seconds[stage] = float(done.read_text())
    rows = []
    for stage in options.stages:
        for name in options.signals:
            row = check(stage, name, work, options.moments, seconds[stage], options.group, options.seed)
            rows.append(row)
            codes = ", ".join(f"{code}: {count}" for code, count in sorted(row["codes"].items()))  # type: ignore[attr-defined]
            print(
                f"{stage:9} {name:5} stopped {row['stopped']:3}  exits {codes:22} {'ok' if row['ok'] else row}",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
