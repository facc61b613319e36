"""Ctrl-C, SIGTERM and SIGHUP: one line, the right exit code, rows on disk, no process left, and the same
command carries on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from catching import catch
from conftest import run_cai
from row_runs import sampling
from tiny import make_model

from cai_cli.processes.interruption import Terminated, after_the_step
from cai_cli.rows.conversation import message

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from check_kills import left_over

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped by SIGHUP",
}
CONTINUES = "the same command continues from what is done"


def start(*words: object, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cai_cli", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **settings)  # type: ignore[call-overload,no-any-return]


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("number", WORDS)
def test_a_stage_that_writes_rows_stops_with_its_rows_on_disk(helpful, world, tmp_path, number) -> None:
    out = tmp_path / "samples.jsonl"
    words = sampling(helpful, world, out)
    partial = tmp_path / "samples.jsonl.partial"
    process, said = catch(lambda: start(*words), out, lambda: partial.stat().st_size, number)
    assert process.returncode == 128 + number, said
    assert (
        errors(said) == [f"error: {WORDS[number]} — {CONTINUES}"]
        and "Traceback" not in said
        and "ignored" not in said
    )
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert rows and not out.exists()
    again = run_cai(*words)
    assert again.returncode == 0, again.stderr
    assert f"continuing after {len(rows)} rows" in again.stderr
    assert len(out.read_text().splitlines()) == 120
    names = {"samples.jsonl", "samples.manifest.json"}
    assert {path.name for path in tmp_path.iterdir()} - {"samples.rejects.jsonl"} == names


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 1.0, 2.0])
def test_whenever_it_comes_it_is_one_line(helpful, world, tmp_path, moment) -> None:
    """While Python starts, while libraries are imported, while the model is loaded."""
    process = start(*sampling(helpful, world, tmp_path / "s.jsonl"))
    while "cai_cli" not in Path(f"/proc/{process.pid}/cmdline").read_text():
        time.sleep(0.02)  # until it is Python
    time.sleep(0.15 + moment)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said, said
    assert [line.split(" — ")[0] for line in errors(said)] == ["error: interrupted"]


def test_a_trainer_that_is_stopped_twice_ends_in_the_same_bytes(tmp_path, cai) -> None:
    make_model(tmp_path / "lm")
    rows = []
    for n in range(320):
        prompt = [message("user", f"How do I make bread, {'please, ' * (n % 5)}number {n}?")]
        rows.append(
            {"id": f"p{n}", "prompt": prompt, "completion": [message("assistant", "Mix it. " * (1 + n % 3))]}
        )
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({**row, "finish_reason": "stop"}) + "\n" for row in rows)
    )
    words = (
        "sft --model lm --data samples.jsonl --num-train-epochs 3 --save-steps 10 --logging-steps 5"
        " --learning-rate 1e-3 --out"
    )
    assert cai(*words.split(), "whole", cwd=tmp_path).returncode == 0
    cut = tmp_path / "cut"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = set(cut.glob("checkpoints/*/complete"))
        more = lambda before=before: set(cut.glob("checkpoints/*/complete")) - before  # noqa: E731
        process, said = catch(lambda: start(*words.split(), "cut", cwd=tmp_path), cut, more, number)
        assert process.returncode == 128 + number and errors(said) == [
            f"error: {WORDS[number]} — {CONTINUES}"
        ], said
        assert "Traceback" not in said
    assert "continuing from" in cai(*words.split(), "cut", cwd=tmp_path).stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    names = [
        sorted(str(file.relative_to(tmp_path / out)) for file in (tmp_path / out).rglob("*"))
        for out in ("whole", "cut")
    ]
    assert names[0] == names[1]


def test_what_does_not_continue_does_not_say_so(helpful, world) -> None:
    process = start(*sampling(helpful, world, "-"))
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, errors(said)) == (143, ["error: stopped by SIGTERM"])


def test_a_signal_that_is_to_be_ignored_is_ignored(helpful, world, tmp_path) -> None:
    """As under nohup."""
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    out = tmp_path / "s.jsonl"
    process = start(*sampling(helpful, world, out), preexec_fn=ignore)
    while process.poll() is None and not (tmp_path / "s.jsonl.partial").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=120)[1] and process.returncode == 0 and out.exists()


def test_a_mistake_keeps_its_exit_code(cai) -> None:
    assert (
        cai("sample").returncode == 2 and cai("--version").returncode == 0 and cai("nonsense").returncode == 2
    )


def test_within_a_step_it_is_noted() -> None:
    program = """
import os, signal
from cai_cli.console.ending import one_line
from cai_cli.processes.interruption import after_the_step, asked_to_stop
with one_line():
    with after_the_step():
        os.kill(os.getpid(), signal.SIGTERM)
        print("step done", asked_to_stop(), flush=True)
    print("never")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        143,
        "step done True\n",
        "error: stopped by SIGTERM\n",
    )
    with after_the_step():
        pass
    assert not issubclass(Terminated, Exception)


def test_one_that_a_library_loses_still_ends_the_command() -> None:
    """What is raised in a destructor is ignored by Python, and a library may make an error of its own of it."""
    program = """
import os, signal, sys
from cai_cli.console.ending import one_line
class Loses:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
with one_line():
    Loses()
    if sys.argv[1] == "error":
        raise RuntimeError("python error in a callback")
"""
    for how in ("end", "error"):
        done = subprocess.run(
            [sys.executable, "-c", program, how], capture_output=True, text=True, check=False
        )
        assert done.returncode == 143 and done.stderr.splitlines()[-1] == "error: stopped by SIGTERM", (
            done.stderr
        )


@needs_proc
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_demo_ends_in_one_line_while_its_fork_server_imports(tmp_path, sent) -> None:
    process = start("demo", "--out", tmp_path / "demo")
    while not process.stderr.readline().startswith("$ cai"):
        assert process.poll() is None
    time.sleep(0.7)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    said = process.communicate(timeout=60)[1]
    assert not left_over(process.pid, 40)
    if sent == signal.SIGKILL:
        assert (process.returncode, said) == (-9, "")
    else:
        assert (process.returncode, said) == (128 + sent, f"error: {WORDS[sent]} — {CONTINUES}\n")


def test_a_library_that_raises_keyboard_interrupt() -> None:
    program = """
import sys
from cai_cli.stages import split
def run(options):
    raise KeyboardInterrupt
split.run = run
from cai_cli.__main__ import main
sys.argv = ["cai", "split", "x.jsonl", "--parts", "a:1", "--out", "y"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A demo that has its world and its models."""
    out = tmp_path_factory.mktemp("begun") / "demo"
    assert run_cai("demo", "--inputs-only", "--out", out).returncode == 0
    return out


class Demo:
    """A demo that is started, perhaps again, and whether its first stage is at work."""

    def __init__(self, *command: object) -> None:
        self.command = command

    def begin(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        words = [*map(str, self.command)]
        self.process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        return self.process

    def at_work(self) -> bool:
        """It is what the server forked, and has computed for a while: its rows are written after many of them."""
        try:
            servers = psutil.Process(self.process.pid).children()
            return any(stage.cpu_times().user > 2 for server in servers for stage in server.children())
        except psutil.NoSuchProcess:
            return False


@needs_proc
@pytest.mark.parametrize(
    ("number", "group"), [("KILL", False), ("TERM", False), ("INT", True), ("TERM", True)]
)
def test_the_demo_takes_its_stage_with_it(begun, tmp_path, number, group) -> None:
    """Its stage and the server that forks it; a second demo then finds nobody at work."""
    out = shutil.copytree(begun, tmp_path / "demo")
    sent = signal.Signals[f"SIG{number}"]
    demo = Demo(sys.executable, "-m", "cai_cli", "demo", "--out", out)
    send = (lambda process: os.killpg(process.pid, sent)) if group else None
    process, said = catch(demo.begin, out, demo.at_work, sent, send)
    assert not left_over(process.pid, 40)
    assert "Traceback" not in said, said
    if number == "KILL":
        assert process.returncode == -9
    else:
        assert process.returncode == 128 + sent
        assert errors(said) == [f"error: {WORDS[sent]} — {CONTINUES}"]


@needs_proc
def test_the_script_runs_the_demos_stages_without_a_word_of_pythons(begun, tmp_path) -> None:
    """It has imported as a module what each stage runs as a program; as installers write it."""
    script = tmp_path / "cai"
    script.write_text("from cai_cli.__main__ import main\nif __name__ == '__main__':\n    main()\n")
    out = shutil.copytree(begun, tmp_path / "demo")
    demo = Demo(sys.executable, script, "demo", "--out", out)
    process, said = catch(demo.begin, out, demo.at_work, signal.SIGTERM)
    assert process.returncode == 143 and not left_over(process.pid, 40)
    assert "Warning" not in said and "<frozen" not in said, said
