"""The wheel holds what the package needs at run time: constitutions, demonstrations, configurations,
checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import sys
from email import message_from_string
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
        [*pip, "wheel", "--no-deps", "-w", folder, PROJECT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be had here")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300
    )
    return folder / "site"


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # -P keeps the current folder off the path; PYTHONPATH comes before an editable install's finder.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "cai_cli", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_shipped_constitutions(installed: Path, tmp_path: Path) -> None:
    assert (installed / "cai_cli" / "constitutions" / "article.yaml").is_file()
    shown = run(installed, tmp_path, "constitution", "show", "article")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (PROJECT / "constitutions" / "article.yaml").read_text(encoding="utf-8")


def test_example_configurations(installed: Path, tmp_path: Path) -> None:
    copied = run(installed, tmp_path, "configs", "copy", "--all")
    assert copied.returncode == 0, copied.stderr
    source = PROJECT / "scripts" / "configs"
    files = sorted(path.relative_to(source) for path in source.rglob("*.yaml"))
    assert sorted(path.relative_to(tmp_path / "configs") for path in tmp_path.rglob("*.yaml")) == files
    assert all((tmp_path / "configs" / path).read_bytes() == (source / path).read_bytes() for path in files)


def test_what_the_package_says_of_itself(installed: Path) -> None:
    """Types for who imports it; on its page in an index no link leads nowhere, and every extra is used by
    some code.
    """
    assert (installed / "cai_cli" / "py.typed").is_file()
    (about,) = installed.glob("*.dist-info/METADATA")
    fields = message_from_string(about.read_text(encoding="utf-8"))
    assert sorted(fields.get_all("Provides-Extra", [])) == ["dev", "openai", "tensorboard", "vllm", "wandb"]
    assert fields["License-Expression"] == "Apache-2.0" and list(about.parent.glob("licenses/LICENSE"))
    assert "Typing :: Typed" in fields.get_all("Classifier", [])
    assert all(url.partition(", ")[2].startswith("https://") for url in fields.get_all("Project-URL", []))
    assert str(fields.get_payload()).strip() == (PROJECT / "README.md").read_text(encoding="utf-8").strip()


def test_demo_inputs_and_dry_run(installed: Path, tmp_path: Path) -> None:
    written = run(installed, tmp_path, "demo", "--inputs-only", "--out", "demo")
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "demo" / "models" / "helpful-only" / "model.safetensors").is_file()
    model, prompts = "demo/models/helpful-only", "demo/world/harmful-sft.jsonl"
    words = ("revise", "--model", model, "--prompts", prompts, "--out", "revisions.jsonl", "--dry-run")
    shown = run(installed, tmp_path, *words)
    assert shown.returncode == 0, shown.stderr
    assert "\n\nCritiqueRequest: " in shown.stdout
    said = run(installed, tmp_path, "chat", "--model", model, "--prompt", "Tell me how to sell our own boat.")
    assert said.returncode == 0 and said.stderr == "", said.stderr
    assert len(said.stdout.splitlines()) == 1 and said.stdout[0].isupper(), said.stdout
    page = run(installed, tmp_path, "report", "demo", "--out", "report.html")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
