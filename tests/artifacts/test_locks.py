"""One process at a time writes an artifact: what a second one is told, and that it leaves the first one's as
it is.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forks
import pytest
from conftest import mistake, run_cai
from stack_exchange_dumps import answer, dump, question
from tiny import make_model

from cai_cli.artifacts import locks
from cai_cli.artifacts.locks import HELD, give_all_back, places_of, take
from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.console.groups import build
from cai_cli.errors import RunError, UserError
from cai_cli.rows.conversation import message
from cai_cli.stages import sample

HOLD = """
import sys
from pathlib import Path
from cai_cli.artifacts.locks import take
take(Path(sys.argv[1])); print(flush=True); input()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A tiny language model and preference model, and rows for each command."""
    from cai_cli.models.load import load_pm
    from cai_cli.models.score import reset_head
    from cai_cli.models.tokenizers import load_tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    model = make_model(folder / "lm")
    make_model(folder / "judge", seed=1)
    pm = load_pm(str(model), "cpu")
    reset_head(pm, 0)
    pm.save_pretrained(folder / "pm")
    load_tokenizer(str(model)).save_pretrained(folder / "pm")
    rows: dict[str, list[dict]] = {
        "prompts": [],
        "samples": [],
        "comparisons": [],
        "revisions": [],
        "attempts": [],
        "hhh": [],
    }
    for n in range(48):
        prompt = [message("user", f"How do I make number {n}?")]
        good, bad = [message("assistant", "First, mix it.")], [message("assistant", f"No {n}.")]
        rows["prompts"].append({"id": f"p{n}", "prompt": prompt})
        rows["samples"].append(
            {"id": f"p{n}/0", "prompt": prompt, "completion": good, "finish_reason": "stop"}
        )
        row = {"id": f"p{n}/c", "prompt_id": f"p{n}", "prompt": prompt, "chosen": good, "rejected": bad}
        rows["comparisons"].append({**row, "probability": 0.75, "origin": "ai"})
        names = ("critique_request", "critique", "revision_request")
        steps = [{"principle": "x", **dict.fromkeys(names, "It harms."), "revision": "First, mix it."}]
        rows["revisions"].append(
            {"id": f"p{n}/r", "prompt": prompt, "completion": good, "initial": bad, "rounds": steps}
        )
        rows["attempts"].append({"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"})
        text = f"\n\nHuman: q{n}\n\nAssistant:"
        replies = {"text_correct": f"{text} yes", "text_incorrect": f"{text} no"}
        question_text = f"{text} Options:\n (A) yes\n (B) no\nThe answer is:"
        rows["hhh"].append({"prompt": question_text, "corrects": [" (A)"], "incorrects": [" (B)"], **replies})
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    posts = []
    for n in range(1, 100, 3):
        posts += [question(n), answer(n + 1, n, 9), answer(n + 2, n, 0)]
    dump(folder / "posts.xml", posts)
    for index in range(2):
        path = folder / f"shard{index}.jsonl"
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in rows["samples"][24 * index : 24 * index + 24])
        )
        options = build(
            sample.Options,
            model=str(model),
            prompts=[str(folder / "prompts.jsonl")],
            out=path,
            shard=f"{index}/2",
        )
        manifest = {
            **begin_manifest("sample", options, folder),
            "counts": {"in": 24, "out": 24, "rejected": {}},
        }
        write_manifest(folder / f"shard{index}.manifest.json", {**manifest, "tokens": 0, "seconds": 0})
    return folder


# Each command that writes, and the artifact that it makes.
COMMANDS = {
    "revise": ("revise --model lm --prompts prompts.jsonl --rounds 1 --max-new-tokens 4", "x.jsonl"),
    "sample": ("sample --model lm --prompts prompts.jsonl --max-new-tokens 4", "x.jsonl"),
    "label": (
        "label --model lm --prompts prompts.jsonl --feedback-model judge --max-new-tokens 4 --min-mass 0",
        "x.jsonl",
    ),
    "score": ("score --pm pm samples.jsonl", "x.jsonl"),
    "import": ("import red-team attempts.jsonl", "x.jsonl"),
    "import --split": ("import red-team attempts.jsonl --split a=0.5,b=0.5", "parts"),
    "split": ("split prompts.jsonl --parts a=0.5,b=0.5", "parts"),
    "merge": ("merge shard0.jsonl shard1.jsonl", "x.jsonl"),
    "export": ("export paper-chains revisions.jsonl", "x.jsonl"),
    "sft": ("sft --model lm --data samples.jsonl", "m"),
    "pmp": ("pmp --model lm --posts posts.xml", "m"),
    "pmp --data-only": ("pmp --posts posts.xml --data-only", "m"),
    "train-pm": ("train-pm --model lm --comparisons comparisons.jsonl", "m"),
    "ppo": (
        "ppo --model lm --pm pm --prompts prompts.jsonl --steps 1 --rollout-batch-size 8 --max-new-tokens 4",
        "m",
    ),
    "evaluate hhh": ("evaluate hhh hhh.jsonl --model lm", "x.json"),
    "constitution test": ("constitution test --feedback-model lm --pairs comparisons.jsonl", "x.json"),
    "evaluate labels": ("evaluate labels comparisons.jsonl comparisons.jsonl", "x.json"),
    "evaluate pm": ("evaluate pm --pm pm --comparisons comparisons.jsonl", "x.json"),
    "demo": ("demo --inputs-only", "demo"),
}


# Held as others are: losing is enough of them
SLOW = ("revise", "label", "pmp", "train-pm", "ppo", "evaluate hhh", "constitution test")


@contextmanager
def holder(out: Path, inputs: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the artifact."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=-1, stdout=-1, text=True, cwd=inputs
    )
    try:
        assert process.stdout and process.stdout.readline() == "\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(result: subprocess.CompletedProcess[str], held: subprocess.Popen) -> None:
    mistake(result, f"process {held.pid} on {socket.gethostname()} is writing it", "choose another --out")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_told_of_the_first_and_writes_nothing(name, inputs, tmp_path):
    words, made = COMMANDS[name]
    out = tmp_path / "new" / made
    with holder(out, inputs) as held:
        before = listing(tmp_path)
        told(run_cai(*words.split(), "--out", out, cwd=inputs), held)
        assert listing(tmp_path) == before and len(before) == 1
        held.send_signal(signal.SIGKILL)
        held.wait()
    assert listing(tmp_path) == before, "the dead holder's lock file is still there"
    if name in SLOW:
        return
    done = run_cai(*words.split(), "--out", out, cwd=inputs)
    # The tiny models' texts may all be rejected: that is said, too, and gives the lock back.
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".lock")]


def start(words: str, out: Path, inputs: Path) -> forks.Command:
    return forks.start([*words.split(), "--out", str(out)], inputs)


@pytest.mark.parametrize("name", ["sample", "sft", "import --split"])
def test_of_two_started_at_once_one_does_the_work(name, inputs, tmp_path):
    words, made = COMMANDS[name]
    words += " --on-truncated keep" if name == "sample" else ""
    runs = [start(words, tmp_path / "alone" / made, inputs)]
    runs[0].communicate()
    runs += [start(words, tmp_path / "both" / made, inputs) for _ in range(2)]
    texts = [run.communicate()[1] for run in runs[1:]]
    codes = sorted(run.returncode for run in runs)
    assert codes in ([0, 0, 2], [0, 0, 0]), texts
    loser = next((text for text in texts if "error:" in text), None)
    if loser:
        assert re.search(r"^error: .*process \d+ on .* is writing it", loser) and loser.count("\n") == 1
    else:
        assert any("already done" in text for text in texts)
    alone, both = listing(tmp_path / "alone"), listing(tmp_path / "both")
    assert sorted(both) == sorted(alone)
    for path in alone:
        if not path.endswith(("manifest.json", "cai.json")):
            assert both[path] == alone[path], path


# What counts as the same artifact


@pytest.fixture
def held(tmp_path) -> Iterator[Path]:
    """x.jsonl and the folder m, held by another process."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "m").symlink_to("real/m")
    with holder(tmp_path / "real/x.jsonl", tmp_path), holder(tmp_path / "real/m", tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    "spelling",
    [
        *(
            "real/x.jsonl",
            "link/x.jsonl",
            "real/../real/./x.jsonl",
            "real/x.jsonl.partial",
            "real/x.jsonl.bak",
            "real/x.json",
        ),
        *("real/m", "link/m", "m", "real/m.bak", "real/new/../m"),
    ],
)
def test_another_spelling_is_the_same_artifact(held, spelling, monkeypatch):
    monkeypatch.chdir(held)
    monkeypatch.setattr(locks, "PATIENCE", 0)
    for path in (Path(spelling), held / spelling):
        with pytest.raises(UserError, match="is writing it"):
            take(path)


@pytest.mark.parametrize(
    "other", ["real/y.jsonl", "real/x", "real/m.jsonl", "real/m/x.jsonl", "x.jsonl", "real/m2"]
)
def test_another_artifact_is_free(held, other):
    take(held / other)
    give_all_back()
    assert sorted(path.name for path in held.rglob("*.lock")) == [".m.lock", ".x.manifest.lock"]
    assert not (held / "real/m").exists(), "a folder made for a lock goes with it"


def test_a_dry_run_and_stdout_hold_nothing_and_may_run_beside(inputs, tmp_path):
    words = COMMANDS["sample"][0].split()
    out = tmp_path / "x.jsonl"
    assert run_cai(*words, "--limit", 4, "--on-truncated", "keep", "--out", out, cwd=inputs).returncode == 0
    partial = out.rename(out.with_name("x.jsonl.partial"))
    (tmp_path / "x.manifest.json").rename(tmp_path / "x.manifest.partial.json")
    with partial.open("a") as stream:
        stream.write('{"id": "half')  # as the holder has written so far
    with holder(out, inputs):
        before = listing(tmp_path)
        shown = run_cai(*words, "--on-truncated", "keep", "--dry-run", "--out", out, cwd=inputs)
        assert shown.returncode == 0 and "88 replies" in shown.stderr, shown.stderr
        assert listing(tmp_path) == before
        printed = run_cai("score", "--pm", "pm", "samples.jsonl", cwd=inputs)
        assert printed.returncode == 0 and len(printed.stdout.splitlines()) == 48


def test_a_command_that_only_reads_holds_nothing(inputs, tmp_path):
    made, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    shutil.copy(inputs / "samples.jsonl", made)
    with holder(made, inputs), holder(inputs / "pm", inputs):
        assert run_cai("inspect", made).returncode == 0
        done = run_cai("score", "--pm", "pm", made, "--out", out, cwd=inputs)
        assert done.returncode == 0, done.stderr


def test_an_old_model_moves_to_bak_while_its_place_is_held(inputs, tmp_path):
    out = tmp_path / "m"
    words = COMMANDS["train-pm"][0].split()
    assert run_cai(*words, "--out", out, cwd=inputs).returncode == 0
    with holder(tmp_path / "m.bak", inputs) as other:
        told(run_cai(*words, "--seed", 1, "--if-changed", "restart", "--out", out, cwd=inputs), other)
    assert run_cai(*words, "--seed", 1, "--if-changed", "restart", "--out", out, cwd=inputs).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.bak"]


def test_a_lock_that_a_killed_command_left_is_nothing_foreign(inputs, tmp_path):
    out = tmp_path / "m"
    with holder(out / "x.jsonl", inputs):
        pass
    assert [path.name for path in out.iterdir()] == [".x.manifest.lock"]
    assert run_cai(*COMMANDS["sft"][0].split(), "--out", out, cwd=inputs).returncode == 0


# The lock itself


def test_a_child_of_the_holder_does_not_hold(tmp_path):
    """Neither a fork, which lives on when the holder is killed, nor what it starts."""
    code = HOLD.replace("print(flush", "import os, time; os.fork() or time.sleep(60); print(flush")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.jsonl")], stdin=-1, stdout=-1, text=True
    )
    assert process.stdout and process.stdout.readline() == "\n"
    with pytest.raises(UserError, match=f"process {process.pid} on "):
        take(tmp_path / "x.jsonl")
    process.kill()
    process.wait()
    take(tmp_path / "x.jsonl")
    give_all_back()
    assert not list(tmp_path.iterdir())


def test_a_fork_gives_nothing_back(tmp_path):
    take(tmp_path / "x.jsonl")
    child = os.fork()
    if not child:
        give_all_back()
        os._exit(0)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".x.manifest.lock"]
    give_all_back()
    assert not list(tmp_path.iterdir()) and not HELD


def test_no_two_processes_hold_while_lock_files_come_and_go(tmp_path):
    """Each of four takes and gives back as fast as it can, and looks for another one in between."""
    code = """
import os, sys, time
from pathlib import Path
from cai_cli.errors import UserError
from cai_cli.artifacts.locks import give_all_back, take
out, taken = Path(sys.argv[1]), 0
end = time.monotonic() + 4
while time.monotonic() < end:
    try:
        take(out)
    except UserError as error:
        assert "is writing it" in str(error), error
        continue
    os.close(os.open(out, os.O_CREAT | os.O_EXCL))
    taken += 1
    os.unlink(out)
    give_all_back()
print(taken)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "new/x.jsonl")]
    runs = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(4)]
    for run in runs:
        printed, said = run.communicate()
        assert run.returncode == 0, said
        assert int(printed) > 0
    assert not list(tmp_path.rglob("*.lock"))


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """Another process makes it first and removes it again, before it is looked at."""
    folder, real, left = tmp_path / "new", os.mkdir, [FileExistsError, FileNotFoundError, FileExistsError]

    def make(path, *settings, **more) -> None:
        if Path(path) == folder and left:
            raise left.pop()(path)
        real(path, *settings, **more)

    monkeypatch.setattr(os, "mkdir", make)
    take(folder / "x.jsonl")
    assert not left and HELD and (folder / ".x.manifest.lock").exists()
    give_all_back()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["stays", "goes"])
def test_a_lock_given_back_as_the_wait_ends_is_taken(folder, tmp_path, monkeypatch):
    """Nobody is writing, then; and no lock file stays that nobody holds."""
    import fcntl

    place, real, left = tmp_path / "new/.x.manifest.lock", fcntl.flock, [1, 1]

    def lock(descriptor: int, operation: int) -> None:
        if left and left.pop():
            place.unlink()
            if folder == "goes":
                place.parent.rmdir()
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(locks, "PATIENCE", 0)
    take(tmp_path / "new/x.jsonl")
    assert place.read_text().startswith(f"{os.getpid()} ") and place.stat().st_mode & 0o777 == 0o666
    give_all_back()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nothing can be made")
def test_where_no_file_can_be_made_it_is_said(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0)
    monkeypatch.setattr(os, "access", lambda *_: True)
    with pytest.raises(RunError, match=r"/proc/\.x\.manifest\.lock: cannot be locked: No such file"):
        take(Path("/proc/x.jsonl"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_in_one_line(code, tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    take(tmp_path / "x.jsonl")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no locks" in said and os.strerror(code) in said
    assert not HELD and not list(tmp_path.iterdir())


def test_where_nothing_can_be_locked_it_is_said_in_one_line(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cai(*COMMANDS["sample"][0].split(), "--out", tmp_path / "file/x.jsonl", cwd=inputs)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be locked: Not a directory — make room" in done.stderr


def test_a_mount_is_locked_inside(tmp_path, monkeypatch):
    """Where nothing can be made beside the folder."""
    (tmp_path / "m").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode))
    assert places_of(tmp_path / "m") == [tmp_path / "m/.lock"]
    assert locks.is_lock_file(tmp_path / "m/.lock")


def test_the_ranks_of_a_launch_are_one_holder_and_end_together(inputs, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "cai_cli",
    ]
    for name in ("sample", "train-pm"):
        words, made = COMMANDS[name]
        words += " --on-truncated keep" if name == "sample" else ""
        command = [*torchrun, *words.split(), "--device", "cpu", "--out", str(tmp_path / made)]
        with holder(tmp_path / made, inputs) as other:
            began = time.monotonic()
            lost = subprocess.run(
                command, cwd=inputs, capture_output=True, text=True, timeout=120, check=False
            )
            assert lost.returncode != 0 and time.monotonic() - began < 60
            lines = [line for line in lost.stderr.splitlines() if line.startswith("error:")]
            assert len(lines) == 1 and f"process {other.pid} on " in lines[0], lost.stderr
    won = subprocess.run(command, cwd=inputs, capture_output=True, text=True, timeout=120, check=False)
    assert won.returncode == 0, won.stderr
    (tmp_path / ".x.manifest.lock").unlink()  # of the holder that was killed
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".lock")]
