"""`cai` commands without their five seconds of imports: a process that has imported torch forks one for each.

What is forked is as a started one: its own arguments, folder, streams, environment, signals, exit. Where a
test sets environment variables, which libraries read as they are imported, `start` starts a process instead;
so it does for all with CAI_TEST_FORKS=0.

The server is this file, run with a socket as stdin: on it come requests, each with a line of its own to
answer on. With the socket's number and words it is `cai WORDS` for a Makefile (`command_line`).
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import traceback
from pathlib import Path

# Variables that commands may differ in: they are read when they are needed.
LEFT = ("PYTEST_CURRENT_TEST", "CAI_SHORTCUTS", "CAI_NEXT_STEPS", "SLURM_STEP_NUM_TASKS")
PYTHON = (sys.executable, "-m", "cai_cli")


def run(words: list[str], cwd: Path | None, timeout: float) -> subprocess.CompletedProcess[str]:
    """`cai WORDS` with nothing to read, to its end."""
    command = start(words, cwd)
    try:
        said = command.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()
        raise
    return subprocess.CompletedProcess([*PYTHON, *words], command.returncode, *said)


def start(words: list[str], cwd: Path | None = None) -> Command:
    """`cai WORDS`, under way."""
    if os.environ.get("CAI_TEST_FORKS") == "0" or not as_the_server():
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
        return subprocess.Popen(
            [*PYTHON, *words], cwd=cwd, stdin=nothing, stdout=pipe, stderr=pipe, text=True
        )
    return Forked(words, cwd)


def command_line() -> tuple[list[str], int]:
    """What a script or a Makefile writes in place of `cai` to have it forked, too, and the descriptor to pass it."""
    descriptor = server()[0].fileno()
    return [sys.executable, __file__, str(descriptor)], descriptor


class Forked:
    """What a test asks of a subprocess.Popen with pipes and text. `stdin`: what it reads, or else nothing; a terminal
    is the one that it has, for what it writes too.
    """

    def __init__(
        self,
        words: list[str],
        cwd: Path | None,
        stdin: int | None = None,
        more: dict[str, str] | None = None,
    ) -> None:
        self.args = [*PYTHON, *words]
        self.returncode: int | None = None
        self.streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - read when the command has ended
        written = (
            [stdin, stdin] if stdin is not None and os.isatty(stdin) else [s.fileno() for s in self.streams]
        )
        streams = [*written, *([] if stdin is None else [stdin])]
        self.line = ask(server()[0], words, cwd, streams, more)
        self.said = self.line.makefile()
        self.pid = int(self.said.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.line], [], [], 0)[0]:
            self.returncode = int(self.said.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.line], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.poll()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        said = []
        for stream in self.streams:
            stream.seek(0)
            said.append(stream.read())
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Command = subprocess.Popen[str] | Forked


def ask(
    server: socket.socket,
    words: list[str],
    cwd: Path | None,
    streams: list[int],
    more: dict[str, str] | None = None,
) -> socket.socket:
    """Have it forked, with these as stdout, stderr and perhaps stdin; returns where its pid and then its exit code are
    told. `more` is added to its environment.
    """
    ours, theirs = socket.socketpair()
    left = {name: os.environ.get(name) for name in LEFT} | (more or {})
    request = json.dumps([words, str(cwd or Path.cwd()), left]).encode() + b"\n"
    socket.send_fds(server, [request], [theirs.fileno(), *streams])
    theirs.close()
    return ours


def as_the_server() -> bool:
    """Whether the environment is that of the process that forks, but for what libraries set as they are imported."""
    _, *known = server()
    names = {*os.environ, *known[0]}.difference(LEFT)
    return all(os.environ.get(name) in [each.get(name) for each in known] for name in names)


@functools.cache
def server() -> tuple[socket.socket, dict[str, str], dict[str, str]]:
    """The socket of the process that forks, and its environment before and after its imports."""
    ours, theirs = socket.socketpair()
    before = dict(os.environ)
    # Without the terminal's size, which readline (pytest has it) leaves in what a child is given.
    given = {name: value for name, value in before.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, __file__], stdin=theirs, env=given)
    theirs.close()

    def end() -> None:
        ours.close()  # at which it ends
        process.wait()

    atexit.register(end)
    with ours.makefile() as told:
        return ours, before, json.loads(told.readline())


def relay(descriptor: int, words: list[str]) -> int:
    """Be `cai WORDS`, forked by the server behind the descriptor; returns the exit code."""
    _, code = ask(socket.socket(fileno=descriptor), words, None, [1, 2]).makefile()
    return int(code)


def gpu() -> bool:
    """Whether a GPU is here, which a process forked after the imports could not use (`stages/demo.py`)."""
    from cai_cli.stages.demo import GPU_DRIVERS

    return any(Path(driver).exists() for driver in GPU_DRIVERS)


def serve() -> None:
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # By name: as statements they are unused to a linter, and were removed by one.
    preload = ["cai_cli.cli", *([] if gpu() else ["cai_cli.training.preload", "cai_cli.training.sft.run"])]
    for module in preload:
        importlib.import_module(module)
    gc.freeze()
    requests.sendall(json.dumps(dict(os.environ)).encode() + b"\n")

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        request, given, *_ = socket.recv_fds(requests, 1 << 20, 4)
        if not request:
            return
        while not request.endswith(b"\n"):
            request += requests.recv(1 << 20)
        if not os.fork():
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            watch(*json.loads(request), *given)
        for descriptor in given:
            os.close(descriptor)


def watch(
    words: list[str], cwd: str, left: dict[str, str | None], line: int, out: int, err: int, *read: int
) -> None:
    """Fork the command, and tell its pid and how it ended."""
    pid = os.fork()
    if not pid:
        os.close(line)
        os.dup2(out, 1)
        os.dup2(err, 2)
        if read:
            os.dup2(*read, 0)
        if os.isatty(0):  # then Ctrl-C typed there is a signal here
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        command(words, cwd, left)
    os.write(line, b"%d\n" % pid)
    os.write(line, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def command(words: list[str], cwd: str, left: dict[str, str | None]) -> None:
    """Be `python -m cai_cli WORDS`, or a launcher."""
    os.chdir(cwd)
    for name, value in left.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    import cai_cli.__main__

    sys.argv = [cai_cli.__main__.__file__, *words]
    code: object = 0
    try:
        if words[:1] == ["-m"]:
            from launchers import launch

            launch(words[1:])
        else:
            cai_cli.__main__.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    sys.exit(relay(int(sys.argv[1]), sys.argv[2:]) if len(sys.argv) > 1 else serve())
