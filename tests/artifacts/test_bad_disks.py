"""Disks that are full or fail, places that cannot be written to, files that cannot be read, readers that have
gone: one line.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest
from catching import catch
from conftest import mistake
from tiny import make_model

from cai_cli.errors import CaiError, RunError, UserError
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import Appended, read_rows, write_atomically, write_rows
from cai_cli.rows.storage import InputFile, open_input, reading, storage_error

ROOM = "make room, or choose a place that can be written to"
PYTHON = [sys.executable, "-m", "cai_cli"]


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def no_room(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One line that asks for room at its end, whatever was said before it, and exit 1."""
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "make room, " in last and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert done.stderr.count("error: ") == 1 and "Exception ignored" not in done.stderr, done.stderr
    for part in parts:
        assert part in last, last


def shell(line: str, *words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `"$@"` is the command."""
    command = ["bash", "-c", line, "bash", *PYTHON, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)


def limited(blocks: int, *words: object) -> subprocess.CompletedProcess[str]:
    """The command where no file can grow beyond that many KiB: a disk that is full in the middle of a file,
    without root.
    """
    return shell(f'ulimit -f {blocks}; exec "$@"', *words)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A tiny model and rows for the stages."""
    from stack_exchange_dumps import answer, dump, question

    folder = tmp_path_factory.mktemp("disks")
    make_model(folder / "lm")
    prompts = [[message("user", f"How do I make {'a very long ' * 9}number {n}?")] for n in range(64)]
    reply, other = [message("assistant", "First, mix it.")], [message("assistant", "No.")]
    samples = [
        {"id": f"{n}/0", "prompt": p, "completion": reply, "finish_reason": "stop"}
        for n, p in enumerate(prompts)
    ]
    rows = [
        {"id": f"{n}", "prompt": p, "chosen": reply, "rejected": other, "probability": 0.9, "origin": "human"}
        for n, p in enumerate(prompts)
    ]
    put(folder / "prompts.jsonl", *({"id": f"p{n}", "prompt": p} for n, p in enumerate(prompts)))
    put(folder / "samples.jsonl", *samples)
    put(folder / "comparisons.jsonl", *rows)
    put(
        folder / "attempts.jsonl",
        *({"transcript": f"\n\nHuman: attempt {n}\n\nAssistant: no"} for n in range(900)),
    )
    posts = []
    for n in range(1, 300, 3):
        posts += [question(n), answer(n + 1, n, 9), answer(n + 2, n, 0, Body=f"<p>No. {'Why? ' * n}</p>")]
    dump(folder / "posts.xml", posts)
    return folder


# What is done stays, and the same command goes on


def same_files(folder: Path, whole: Path) -> None:
    names = [
        path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".jsonl", ".safetensors")
    ]
    assert names
    for name in names:
        if name.name != "timings.jsonl":
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".partial")]


def lines_of(path: Path) -> list[dict]:
    assert path.read_bytes()[-1:] in (b"", b"\n")
    return [row for _, row in read_rows(path)]


ROWS = {
    "import": "import red-team {}/attempts.jsonl",
    "sample": "sample --model {}/lm --prompts {}/prompts.jsonl --max-new-tokens 8 --batch-size 8 --on-truncated keep"
    " --attempts 1",
}
MODELS = {
    "train-pm": "train-pm --model {}/lm --comparisons {}/comparisons.jsonl --save-steps 2 --logging-steps 2 --num-train-epochs 2",
    "sft": "sft --model {}/lm --data {}/samples.jsonl --save-steps 2 --logging-steps 2 --num-train-epochs 2",
}


def words_of(command: str, world: Path) -> list[str]:
    return command.replace("{}", str(world)).split()


@pytest.mark.parametrize("stage", ROWS)
def test_rows_up_to_the_last_whole_one_are_kept(cai, world, tmp_path, stage):
    words = words_of(ROWS[stage], world)
    whole, out = tmp_path / "whole" / "rows.jsonl", tmp_path / "out" / "rows.jsonl"
    assert cai(*words, "--out", whole).returncode == 0
    no_room(limited(whole.stat().st_size // 2 // 1024, *words, "--out", out), str(out), "File too large")
    left = lines_of(out.with_name("rows.jsonl.partial"))
    assert 0 < len(left) < len(lines_of(whole)) and json.loads(
        out.with_name("rows.manifest.partial.json").read_text()
    )
    again = cai(*words, "--out", out)
    assert again.returncode == 0 and "continuing after" in again.stderr, again.stderr
    same_files(out.parent, whole.parent)


@pytest.mark.parametrize("stage", MODELS)
def test_the_last_checkpoint_stays_and_no_half_of_another(cai, world, tmp_path, stage):
    """The limit is below the model's size: nothing can be saved. With a checkpoint there already, that one
    stays.
    """
    words = words_of(MODELS[stage], world)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert cai(*words, "--out", whole).returncode == 0
    blocks = (whole / "model.safetensors").stat().st_size // 2 // 1024
    no_room(limited(blocks, *words, "--out", out))
    assert [path.name for path in (out / "checkpoints").glob("*-*")] == []
    kept = start_and_kill(words, out)
    no_room(limited(blocks, *words, "--out", out))
    there = [path.name for path in (out / "checkpoints").glob("*-*") if not path.name.startswith("tokens")]
    assert there == [kept]
    assert not (out / "cai.json").exists() and json.loads((out / "cai.partial.json").read_text())
    assert cai(*words, "--out", out).returncode == 0
    same_files(out, whole)


def start_and_kill(words: list[str], out: Path) -> str:
    """A run that is killed with its first checkpoint complete; returns the checkpoint's name."""
    sealed = lambda: list((out / "checkpoints").glob("*/complete"))  # noqa: E731
    catch(lambda: forks.start([*words, "--out", str(out)]), out, sealed)
    marked = [path.parent.name for path in sealed()]
    for path in (out / "checkpoints").glob("*-*"):
        if path.name != max(marked, key=lambda name: int(name.rpartition("-")[2])):
            shutil.rmtree(path)
    return max(marked, key=lambda name: int(name.rpartition("-")[2]))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(64)`: an empty file system of 64 KiB, or another size for the same one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def make(kilobytes: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kilobytes}k"
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("a small file system can be mounted by root alone")
        mounted = True
        return folder

    yield make
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (ROWS["import"], 64),
        ("split {}/prompts.jsonl --parts a=1,b=1", 8),
        (MODELS["train-pm"], 256),
        (MODELS["sft"], 256),
        ("pmp --model {}/lm --posts {}/posts.xml --data-only", 24),
        ("pmp --model {}/lm --posts {}/posts.xml --save-steps 2 --max-length 4096", 200),
        ("demo --inputs-only", 64),
    ],
)
def test_a_disk_that_runs_full(cai, world, tmp_path, small_disk, words, size):
    command = words_of(words, world)
    name = "rows.jsonl" if command[0] == "import" else "out"
    place = small_disk(size)
    no_room(cai(*command, "--out", place / name))
    assert not [path for path in place.rglob("*") if path.name.endswith(".tmp") and path.is_file()]
    small_disk(200_000)
    assert cai(*command, "--out", place / name).returncode == 0
    if command[0] != "demo":
        assert cai(*command, "--out", tmp_path / "whole" / name).returncode == 0
        same_files(place, tmp_path / "whole")


# Places that cannot be written to


def test_places_where_nothing_can_be(cai, world, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, problem in (
        (tmp_path / "file" / "deeper" / "rows.jsonl", "Not a directory"),
        (tmp_path / ("n" * 300) / "rows.jsonl", "File name too long"),
        (tmp_path / f"{'n' * 250}.jsonl", "File name too long"),
        (Path("/proc/nowhere/rows.jsonl"), "No such file or directory"),
        (tmp_path / "loop" / "rows.jsonl", "cannot be locked"),
    ):
        no_room(cai("import", "red-team", world / "attempts.jsonl", "--out", place), problem)
    no_room(cai("split", world / "prompts.jsonl", "--parts", "a=1", "--out", "/proc/nowhere/out"))
    (tmp_path / "rows.jsonl.partial").mkdir()
    done = cai("import", "red-team", world / "attempts.jsonl", "--out", tmp_path / "rows.jsonl")
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("stage", MODELS)
def test_a_folder_that_goes_away_under_a_running_stage(world, tmp_path, stage):
    out = tmp_path / "out"
    words = [*words_of(MODELS[stage], world), "--num-train-epochs", "9"]

    def take_away(process: forks.Command) -> None:
        process.send_signal(signal.SIGSTOP)
        shutil.rmtree(out)
        process.send_signal(signal.SIGCONT)

    begin = lambda: forks.start([*words, "--out", str(out)])  # noqa: E731
    process, said = catch(begin, out, lambda: (out / "metrics.jsonl").exists(), send=take_away)
    no_room(subprocess.CompletedProcess([], process.returncode, "", said), str(out))


# Files that cannot be read


def test_what_is_no_file(cai, world, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jsonl"))
        for name in (tmp_path / "pipe.jsonl", tmp_path / "s.jsonl", "/dev/zero"):
            for words in (
                ("split", name, "--parts", "a=1"),
                ("import", "red-team", name),
                ("split", "--config", name),
            ):
                out = tmp_path / ("o.jsonl" if words[0] == "import" else "o")
                line = mistake(cai(*words, "--out", out, timeout=60), str(name), "is not a file but a pipe")
                assert ROOM not in line
        mistake(cai("inspect", tmp_path / "pipe.jsonl", timeout=60), "is not a file")
    mistake(
        cai("split", tmp_path / ("n" * 300), "--parts", "a=1", "--out", tmp_path / "o"), "File name too long"
    )
    mistake(cai("constitution", "show", "n" * 300), "no constitution")
    done = cai(
        "sample",
        "--model",
        tmp_path / ("n" * 300),
        "--prompts",
        world / "prompts.jsonl",
        "--out",
        tmp_path / "o.jsonl",
    )
    assert ROOM not in mistake(done, "File name too long")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EISDIR])
def test_a_read_that_fails_on_the_way_is_no_matter_of_room(tmp_path, monkeypatch, number):
    """A disk that gives no more: every way to read a file is told as one, plain or unpacked."""
    import gzip

    from cai_cli.artifacts.fingerprints import fingerprint_file
    from cai_cli.importers.post_files import read_file

    plain = put(tmp_path / "rows.jsonl", *({"n": n, "t": "x" * 99} for n in range(3000)))
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(f'{{"t": "{os.urandom(200_000).hex()}"}}\n'.encode()))
    whole, reads = InputFile.readinto, 0

    def failing(self: InputFile, buffer: object) -> int | None:
        nonlocal reads
        reads += 1
        if reads > 1:
            with reading(str(self.name)):
                raise OSError(number, os.strerror(number))
        return whole(self, buffer)

    monkeypatch.setattr(InputFile, "readinto", failing)
    for path, read in (
        (plain, lambda path: list(read_rows(path))),
        (packed, lambda path: list(read_rows(path))),
        (plain, fingerprint_file),
        (plain, lambda path: list(read_file(path))),
    ):
        reads = 0
        with pytest.raises(UserError) as raised:
            read(path)
        assert f"{path}: cannot be read: {os.strerror(number)}" == raised.value.message and ROOM not in str(
            raised.value
        )


def test_a_file_that_fails_for_real(tmp_path):
    """/proc/self/mem is a file that opens, and whose first byte cannot be read."""
    mem = Path("/proc/self/mem")
    if not os.access(mem, os.R_OK):
        pytest.skip("no /proc here")
    with (
        pytest.raises(UserError, match="/proc/self/mem: cannot be read: Input/output error"),
        open_input(mem) as stream,
    ):
        stream.read(1)


# Errors of libraries, by their own words


def raised_by(action: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as raised:
        action()
    return raised.value


def test_libraries_that_cannot_write_or_read(tmp_path):
    import safetensors.torch
    import torch
    from lxml import etree
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    weights, nowhere = {"w": torch.ones(1 << 16)}, str(tmp_path / "nix" / "file")
    database = tmp_path / "db.sqlite"
    sqlite3.connect(database).execute("CREATE TABLE t (a)").connection.close()
    read_only = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    small = sqlite3.connect(":memory:")
    small.execute("PRAGMA max_page_count=2")
    writes: list[Callable[[], object]] = [
        lambda: torch.save(weights, "/dev/full"),
        lambda: torch.save(weights, Path("/dev/full").open("wb")),  # noqa: SIM115
        lambda: torch.save(weights, nowhere),
        lambda: safetensors.torch.save_file(weights, nowhere),
        lambda: read_only.execute("INSERT INTO t VALUES (1)"),
        lambda: [small.execute(f"CREATE TABLE t{n} (a)") for n in range(99)],
        lambda: sqlite3.connect(nowhere),
        lambda: etree.ElementTree(etree.fromstring("<a>" + "b" * 99999 + "</a>")).write("/dev/full"),
        lambda: Path("/dev/full").write_text("x"),
    ]
    for write in writes:
        error = raised_by(write)
        told = storage_error(error, Path(tmp_path / "nix"))
        assert isinstance(told, RunError) and told.hint == ROOM, (type(error), error, told)
    reads: list[Callable[[], object]] = [
        lambda: safetensors.torch.load_file(nowhere),
        lambda: torch.load(nowhere),
        lambda: Tokenizer.from_file(nowhere),
        lambda: Path(nowhere).read_text(),
    ]
    for read in reads:
        error = raised_by(read)
        told = storage_error(error, Path("elsewhere.jsonl"))
        assert isinstance(told, CaiError) and ROOM not in str(told), (type(error), error, told)
    assert storage_error(raised_by(lambda: Tokenizer(BPE()).save("/dev/full"))) is not None
    for bug in (
        ValueError("expected a number"),
        KeyError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ):
        assert storage_error(bug) is None


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), RunError, ROOM),
        (OSError(errno.EROFS, "Read-only file system", "/x/rows.jsonl"), RunError, ROOM),
        (
            PermissionError(errno.EPERM, "Operation not permitted", "/x/out/rows.jsonl.partial"),
            RunError,
            ROOM,
        ),
        (PermissionError(errno.EPERM, "Operation not permitted", "/y/in.jsonl"), UserError, "check the path"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/out/.rows.manifest.json.tmp"),
            RunError,
            ROOM,
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x/out/rows.jsonl.partial"), RunError, ROOM),
        (OSError(errno.EMFILE, "Too many open files", "/y/in.jsonl"), RunError, "ulimit -n"),
        (OSError(errno.EIO, "Input/output error"), RunError, "goes on with what is done"),
        (OSError("Not enough disk space. Needed: 3 GiB"), RunError, ROOM),
        (OSError("1000 requested and 234 written"), RunError, ROOM),
        (Exception("No space left on device (os error 28)"), RunError, ROOM),
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            RunError,
            "goes on with what is done",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), RunError, ROOM),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), RunError, ROOM),
    ],
)
def test_errors_are_sorted(error, kind, part):
    told = storage_error(error, Path("/x/out/rows.jsonl"))
    assert type(told) is kind and part in str(told.hint), told
    assert kind is UserError or part == ROOM or ROOM not in str(told)


def test_an_error_that_a_library_wrapped():
    def generate() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    assert storage_error(raised_by(generate)).hint == ROOM


def test_nothing_half_written_is_left(tmp_path):
    target = tmp_path / "rows.jsonl"
    target.write_text("old")

    def rows() -> Iterator[dict]:
        yield {"a": 1}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_rows(target, rows())
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"] and target.read_text() == "old"


def test_lines_that_a_full_disk_refused_do_not_come_later(tmp_path):
    """What was in memory when the disk was full would be written at the end of the process, after the cut."""
    code = (
        "import resource, sys; from pathlib import Path; from cai_cli.rows.jsonl import Appended\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        f"file = Appended(Path({str(tmp_path / 'rows.jsonl')!r}))\n"
        "try:\n    [file.write('x' * 99 + chr(10)) for _ in range(500)]; file.flush()\n"
        "except OSError: pass\n"
        "else: sys.exit(3)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "rows.jsonl").read_text() == ("x" * 99 + "\n") * 30
    assert Appended(tmp_path / "rows.jsonl").path.exists()
