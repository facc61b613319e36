"""`cai` commands without their five seconds of imports: a process that has imported torch forks one for each.

What is forked is as a started one: its own arguments, folder, streams, environment, exit. Where a test sets environment
variables, which libraries read as they are imported, `run` starts a process instead; so it does for all with CAI_TEST_FORKS=0.

The server is this file, run with the socket to its parent as stdin.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

LEFT = ("PYTEST_CURRENT_TEST",)  # variables that commands may differ in
PYTHON = (sys.executable, "-m", "cai_cli")


def run(words: list[str], cwd: Path | None, timeout: float) -> subprocess.CompletedProcess[str]:
    """`cai WORDS` with nothing to read, to its end."""
    if os.environ.get("CAI_TEST_FORKS") == "0" or environment() != server()[1]:
        return subprocess.run(
            [*PYTHON, *words], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    line, _ = server()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        request = json.dumps([words, str(cwd or Path.cwd()), os.environ.get(LEFT[0])]).encode() + b"\n"
        socket.send_fds(line, [request], [out.fileno(), err.fileno()])
        pid, code = int(answer(line)), None
        if select.select([line], [], [], timeout)[0]:
            code = int(answer(line))
        else:
            os.kill(pid, signal.SIGKILL)
            answer(line)
        out.seek(0), err.seek(0)
        said = out.read(), err.read()
    if code is None:
        raise subprocess.TimeoutExpired([*PYTHON, *words], timeout, *said)
    return subprocess.CompletedProcess([*PYTHON, *words], code, *said)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LEFT}


def answer(line: socket.socket) -> str:
    """The next line from the server; it writes one at a time."""
    said = b""
    while not said.endswith(b"\n"):
        more = line.recv(1)
        if not more:
            raise RuntimeError("the process that forks has ended")
        said += more
    return said.decode()


@functools.cache
def server() -> tuple[socket.socket, dict[str, str]]:
    """The line to the process that forks, and the environment that it has."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, __file__], stdin=theirs)
    theirs.close()

    def end() -> None:
        ours.close()  # at which it ends
        process.wait()

    atexit.register(end)
    return ours, environment()


def serve() -> None:
    line = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    while True:
        request, streams, *_ = socket.recv_fds(line, 1 << 20, 2)
        if not request:
            return
        while not request.endswith(b"\n"):
            request += line.recv(1 << 20)
        pid = os.fork()
        if not pid:
            line.close()
            command(*json.loads(request), streams)
        for stream in streams:
            os.close(stream)
        line.sendall(b"%d\n" % pid)
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def command(words: list[str], cwd: str, test: str | None, streams: list[int]) -> None:
    """Be `python -m cai_cli WORDS`."""
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    for stream in streams:
        os.close(stream)
    os.chdir(cwd)
    if test is not None:
        os.environ[LEFT[0]] = test
    import cai_cli.__main__

    sys.argv = [cai_cli.__main__.__file__, *words]
    code: object = 0
    try:
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
    serve()
