"""The process that `cai(...)` of the tests forks commands from (`tests/support/forks.py`)."""

from __future__ import annotations

from pathlib import Path

import forks
import psutil
import pytest
from conftest import run_cai


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists() or forks.gpu(),
    reason="looks for libraries in /proc, which with a GPU are not there",
)
def test_it_has_torch_loaded_so_that_no_command_pays_for_its_import() -> None:
    assert run_cai("--version").returncode == 0
    (server,) = [child for child in psutil.Process().children() if child.cmdline()[-1].endswith("forks.py")]
    assert any("libtorch" in mapped.path for mapped in server.memory_maps())
