"""`cai demo --out DIR`: the whole chain on the micro-world, as the ordinary commands, each printed before it
runs.

    DIR/world/      prompts by split, a Stack Exchange dump, human comparisons; the constitution
    DIR/models/     the two shipped checkpoints: helpful-only and base
    DIR/...         what each stage writes
    DIR/results.json, results.png    oracle rates of helpful-only, SL-CAI and RL-CAI on held-out test prompts

    cai demo --constitution curt --out runs/curt

makes another model: no harm, and not a word more. Any YAML file in the sentences of
cai_cli/microworld/wordings.yaml will do.

The stages never ask the oracle, but it is in what they start from: the human helpfulness comparisons and the
votes, which follow it with noise, and the helpful-only checkpoint, the judge and reviser here, which learned
from it to read principles.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Annotated, Any

from cai_cli.artifacts.locks import hold
from cai_cli.console.ending import one_line
from cai_cli.console.messages import NEXT_STEPS, say, table, tell_next, warn
from cai_cli.console.options import CONSTITUTION, RUNTIME, flag
from cai_cli.errors import RunError, UserError
from cai_cli.processes.interruption import Terminated, end_with_parent, held_back, ignore
from cai_cli.processes.ranks import check_one_process
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.principles import Constitution
from cai_cli.rows.jsonl import read_records, strict_json, write_atomically
from cai_cli.rows.records import Sample
from cai_cli.rows.storage import is_input, read_input

# Of Nvidia, of AMD, and under Windows
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
SAMPLE = "--max-new-tokens 64 --batch-size 256"
TRAIN = "--per-device-train-batch-size 32 --max-length 256"

# The chain. {out} is the demo's directory, {seed} its seed.
# `permissive` finds nothing to revise in most drafts: a share of rejects that is no mistake here.
STEPS = (
    "revise --model {out}/models/helpful-only --prompts {out}/world/harmful-sft.jsonl"
    " --constitution {out}/world/constitution.yaml --few-shot none --rounds 2 --max-reject-rate 1 "
    + SAMPLE
    + " --out {out}/revisions.jsonl",
    "sample --model {out}/models/helpful-only --prompts {out}/world/helpful-sft.jsonl -n 2 "
    + SAMPLE
    + " --out {out}/samples.jsonl",
    "sft --model {out}/models/base --data {out}/revisions.jsonl --data {out}/samples.jsonl"
    " --learning-rate 8e-4 --lr-scheduler-type linear --num-train-epochs 2 " + TRAIN + " --out {out}/sl-cai",
    "label --model {out}/sl-cai --prompts {out}/world/harmful-label.jsonl -n 8 --feedback-model {out}/models/helpful-only"
    " --constitution {out}/world/constitution.yaml --principles-per-pair 2 "
    + SAMPLE
    + " --out {out}/comparisons.jsonl",
    "pmp --model {out}/models/base --posts {out}/world/posts.xml --format chat --pairs-per-question 2 --min-score-gap 2"
    " --lm-coef 1 --learning-rate 1e-3 " + TRAIN + " --out {out}/pmp",
    "train-pm --model {out}/pmp --comparisons {out}/comparisons.jsonl:5 --comparisons {out}/world/human-helpfulness.jsonl"
    " --lm-coef 0.5 --learning-rate 1e-3 --lr-scheduler-type linear " + TRAIN + " --out {out}/pm",
    "ppo --model {out}/sl-cai --pm {out}/pm --prompts {out}/world/rl.jsonl --steps 96 --rollout-batch-size 128 --num-ppo-epochs 1"
    " --learning-rate 2e-4 --lr-scheduler-type cosine --value-learning-rate 5e-4 --kl-coef 0.2 --per-device-train-batch-size 64"
    " --max-new-tokens 64 --batch-size 256 --out {out}/rl-cai",
)
COLUMNS = ("harmless", "evasive", "helpful", "helpful_dual", "over_refusal", "nonsense")
# What else a constitution can name, in a table of their own.
NAMED = ("harmless", "reason", "alternative", "polite", "question")
MODELS = {"helpful-only": "models/helpful-only", "sl-cai": "sl-cai", "rl-cai": "rl-cai"}
EVALUATE = (
    "sample --model {out}/{model} --prompts {out}/world/test.jsonl -n 4 --on-truncated keep --attempts 1 "
    + SAMPLE
    + " --out {out}/eval/{name}.jsonl"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Annotated[Path, flag("Output", "Directory for everything the demo writes."), RUNTIME] = Path(
        "runs/demo"
    )
    constitution: Annotated[
        str,
        flag("Data", "YAML file, or one of this world's: kind, curt, permissive, unseen. See wordings.yaml."),
        CONSTITUTION,
    ] = "kind"
    seed: Annotated[int, flag("Output", "Seed of the world's files and of every stage.")] = 0
    inputs_only: Annotated[
        bool,
        flag("Output", "Write the world's files and the two models, and stop.", "--inputs-only"),
        RUNTIME,
    ] = False


def run(options: Options) -> None:
    """Run Constitutional AI from end to end on a tiny synthetic world, in minutes on two CPU cores.

    The constitution decides what comes out: `curt` refuses and says no more, `permissive` helps with anything.

    Example: cai demo --out runs/demo
    Example: cai demo --constitution curt --out runs/curt
    """
    check_one_process("the demo is run")
    started = time.monotonic()
    constitution = read_constitution(options.constitution)
    hold(options.out)
    prepare(options)
    if options.inputs_only:
        return
    seconds: dict[str, float] = {}
    for step in STEPS:
        seconds[step.split()[0]] = run_command(step, options)
    evaluation = time.monotonic()
    for name, model in MODELS.items():
        run_command(EVALUATE, options, name=name, model=model)
    seconds["evaluation"] = time.monotonic() - evaluation
    results = measure(options, constitution)
    results |= {"seed": options.seed, "seconds": {name: round(value, 1) for name, value in seconds.items()}}
    write_atomically(options.out / "results.json", strict_json(results, "results.json", indent=2) + "\n")

    from cai_cli.microworld.plot import draw_results

    draw_results(results, options.out / "results.png")
    show(results, time.monotonic() - started, options.out)


def prepare(options: Options) -> None:
    """Write the world's files and copy constitution and models; files of another seed are an error of the
    stages that read them.
    """
    from cai_cli.microworld import CHECKPOINTS, checkpoint
    from cai_cli.microworld.files import write_world

    world = options.out / "world"
    if world.exists():
        check_same(options.constitution, world / "constitution.yaml")
        say(f"{world}: already there")
    else:
        temporary = options.out / ".world.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        write_world(temporary, options.seed, constitution_file(options.constitution))
        temporary.replace(world)
        say(f"{world}: written")
    for name in CHECKPOINTS:
        target = options.out / "models" / name
        if not target.exists():
            temporary = target.with_name(f".{name}.tmp")
            shutil.copytree(checkpoint(name), temporary, dirs_exist_ok=True)
            temporary.replace(target)


def constitution_file(name_or_path: str) -> Path:
    """The file behind --constitution. Raises UserError where there is none."""
    from cai_cli.microworld import constitutions

    if name_or_path in constitutions():
        return constitutions()[name_or_path]
    if not is_input(Path(name_or_path)):
        names = ", ".join(constitutions())
        raise UserError(f"--constitution: no file {name_or_path!r}", f"give a YAML file, or one of {names}")
    return Path(name_or_path)


def read_constitution(name_or_path: str) -> Constitution:
    """Read and check it, and tell of principles that the models of this world cannot read."""
    from cai_cli.microworld.steering import unread

    file = constitution_file(name_or_path)
    if file.suffix == ".json":  # published files; copied as YAML they would be read as something else
        raise UserError(
            f"--constitution {file}: the demo takes YAML", "`cai import paper-constitution` makes it"
        )
    constitution = load_constitution(str(file))
    for line in unread(constitution):
        warn(f"{line}; the sentences that it has are in cai_cli/microworld/wordings.yaml")
    return constitution


def check_same(name_or_path: str, there: Path) -> None:
    """Raise UserError where another constitution is there: all that was made since was made by it."""
    if read_input(constitution_file(name_or_path)) != read_input(there):
        hint = "give another --out, or delete this one"
        raise UserError(f"{there.parent.parent} was made by another constitution than {name_or_path}", hint)


def run_command(step: str, options: Options, **names: str) -> float:
    """Print one `cai` command and run it in a process of its own; returns its seconds.

    The processes are forked from a server that has imported torch and transformers already, which takes
    longer than most of the stages themselves; otherwise each is what the printed command would start.
    """
    words = [*(word.format(out=options.out, **names) for word in step.split()), "--seed", str(options.seed)]
    say("")
    say(f"$ cai {shlex.join(words)}")
    start = time.monotonic()
    processes = start_method()
    process = processes.Process(target=run_cli, args=(words,))
    process.start()
    try:
        process.join()
    except Terminated as stopped:
        hand_on(stopped, process)
        raise
    if code := process.exitcode or 0:
        number = -code if code < 0 else code - 128
        if number in set(signal.Signals):
            raise RunError(
                f"`cai {words[0]}` was stopped by {signal.Signals(number).name}", "the same command continues"
            )
        hint = "its message is above; the same command continues"
        raise RunError(f"`cai {words[0]}` ended with exit code {code}", hint)
    return time.monotonic() - start


def start_method() -> Any:
    """How a stage's process begins: forked from one that has all imported, in a tenth of a second; where there is a
    GPU anew, since bitsandbytes opens it as it is imported, and a forked process could not use it then.
    """
    if any(Path(driver).exists() for driver in GPU_DRIVERS):  # torch itself would take seconds to tell
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["cai_cli.training.preload"])
    # A signal to all is for the demo, and for the stage: without the server nobody knows how that ended.
    with held_back():
        forkserver.ensure_running()
    return processes


def hand_on(stopped: Terminated, process: Any) -> None:
    """Tell the stage to stop as well, and wait: a trainer writes its checkpoint. At a terminal Ctrl-C has
    reached it already.
    """
    ignore()
    if process.is_alive() and process.pid:
        os.kill(process.pid, stopped.number)
    process.join()


def run_cli(words: list[str]) -> None:
    """`python -m cai_cli` with these arguments. Ends with the demo, which says why where a signal came."""
    end_with_parent()
    os.environ[NEXT_STEPS] = "0"
    sys.argv = ["cai", *words]
    # The `cai` script has imported it as a module, which runpy would warn of.
    sys.modules.pop("cai_cli.__main__", None)
    with one_line(told=False):
        runpy.run_module("cai_cli", run_name="__main__")


def measure(options: Options, constitution: Constitution) -> dict[str, Any]:
    """Oracle rates of the three models on the test prompts, and what the constitution asks for."""
    from cai_cli.microworld.results import compare
    from cai_cli.microworld.steering import asked

    samples = {name: read_records(options.out / "eval" / f"{name}.jsonl", Sample.from_row) for name in MODELS}
    results = compare(samples, before="sl-cai", after="rl-cai")
    return results | {"constitution": constitution.name, "asked": asked(constitution)}


def show(results: dict[str, Any], seconds: float, out: Path) -> None:
    """The tables at the end: rates of each model, with intervals below, and what the constitution asks for."""
    title = "oracle rates on held-out test requests, % with 95 % intervals"
    show_rates(title, COLUMNS, {}, results["models"])
    asked = {name: results["asked"][name] for name in NAMED if name in results["asked"]}
    if asked:
        title = f"what the constitution `{results['constitution']}` names, of replies to harmful requests"
        show_rates(title, tuple(asked), asked, results["models"])
    say(f"done in {seconds:.0f} s: {out / 'results.json'}, {out / 'results.png'}")
    tell_next("cai report", out, "--out", out / "report.html")


def show_rates(title: str, columns: tuple[str, ...], asked: dict[str, str], models: dict[str, Any]) -> None:
    """One table: a row of rates for each model, and its intervals below."""
    rows = []
    for name, rates in models.items():
        bounds = [rates["intervals"][column] for column in columns]
        rows.append([name, *(f"{100 * rates[column]:.1f}" for column in columns)])
        rows.append(["", *(f"{100 * low:.0f}–{100 * high:.0f}" for low, high in bounds)])
    ways = {"up": "\n(more)", "down": "\n(less)"}
    heads = [column.replace("_", "\n") + ways.get(asked.get(column, ""), "") for column in columns]
    table(title, ["", *heads], rows)
