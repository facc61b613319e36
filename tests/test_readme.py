"""What the README tells people to type exists: every command and flag in its code blocks, every file it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
README = PROJECT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_flags_exist() -> None:
    known = set((PROJECT / "tests" / "flags.txt").read_text(encoding="utf-8").splitlines())
    used = [line.split() for line in commands() if line.startswith("cai ")]
    assert len(used) > 10
    for words in used:
        name = " ".join(words[1:3]) if words[1] in ("constitution", "evaluate") else words[1]
        for word in words[2:]:
            if word.startswith("-"):
                assert f"{name} {word}" in known, f"`{' '.join(words)}`: {word}"


def test_make_targets_and_files_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for line in commands():
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (PROJECT / path).exists(), path
    for path in re.findall(r"`(scripts/[\w./]+)`", README.read_text(encoding="utf-8")):
        assert (PROJECT / path).exists(), path
