"""The wheel holds what the package needs at run time: constitutions, demonstrations, the micro-world's checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (PROJECT / "pyproject.toml").is_file(), reason="needs the source tree")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", folder, PROJECT], capture_output=True, text=True, timeout=300, check=False
    )
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be had here")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300)
    return folder / "site"


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # -P keeps the current folder off the path; PYTHONPATH comes before an editable install's finder.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "cai_cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_shipped_constitutions(installed: Path, tmp_path: Path) -> None:
    assert (installed / "cai_cli" / "constitutions" / "article.yaml").is_file()
    shown = run(installed, tmp_path, "constitution", "show", "article")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (PROJECT / "constitutions" / "article.yaml").read_text(encoding="utf-8")


def test_demo_inputs_and_dry_run(installed: Path, tmp_path: Path) -> None:
    written = run(installed, tmp_path, "demo", "--inputs-only", "--out", "demo")
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "demo" / "models" / "helpful-only" / "model.safetensors").is_file()
    model, prompts = "demo/models/helpful-only", "demo/world/harmful-sft.jsonl"
    words = ("revise", "--model", model, "--prompts", prompts, "--out", "revisions.jsonl", "--dry-run")
    shown = run(installed, tmp_path, *words)
    assert shown.returncode == 0, shown.stderr
    assert "\n\nCritiqueRequest: " in shown.stdout
