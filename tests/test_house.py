"""The house: which room imports from which, what never loads torch, how large files and functions are, the
README's tree.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cai_cli"
# From the ground up: a room imports from those before it alone.
FLOORS = (
    ("errors", "keys"),
    ("processes",),
    ("console",),
    ("rows",),
    ("prompting",),
    ("artifacts",),
    ("compute",),
    ("models",),
    ("engines",),
    ("importers",),
    ("evaluation",),
    ("feedback",),
    ("training",),
    ("microworld",),
    ("report",),
    ("stages",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = ("console", "rows", "prompting", "artifacts", "importers", "report", "stages")
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "matplotlib")
LONGEST_FILE, LONGEST_FUNCTION, MOST_ENTRIES = 350, 80, 21


@cache
def files() -> dict[str, Path]:
    """Module -> file, for all of the package."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        found[".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = file
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that one names anywhere: at its top, within a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(files()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in files()}
        elif isinstance(node, ast.ImportFrom) and node.module in files():
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & files().keys()) or {node.module}
    return frozenset(found - {"cai_cli"})


def room(module: str) -> str:
    return module.removeprefix("cai_cli").removeprefix(".").partition(".")[0]


def test_rooms_import_from_lower_floors_alone():
    assert {room(module) for module in files()} - {""} == FLOOR.keys()
    wrong = [
        f"{module} -> {other}"
        for module in files()
        for other in imports(module)
        if room(module) != room(other) and FLOOR.get(room(module), 0) <= FLOOR[room(other)]
    ]
    assert not wrong


def test_what_is_computed_sooner_knows_nothing_of_us():
    """So that it can be tried, measured and thrown out by itself."""
    assert not [
        f"{module} -> {other}"
        for module in files()
        if room(module) == "compute"
        for other in imports(module)
        if room(other) != "compute"
    ]


def test_no_circle_of_imports():
    left = {module: set(imports(module)) for module in files()}
    while ready := [module for module, others in left.items() if not others & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, "these import each other, or one that does"


def test_stages_meet_at_files():
    stages = {module for module in files() if room(module) == "stages"}
    assert not [f"{one} -> {other}" for one in stages for other in imports(one) & stages]


@pytest.mark.parametrize("name", TORCH_FREE)
def test_rooms_without_torch(name):
    modules = sorted(module for module in files() if room(module) == name)
    settings = (
        sorted(module for module in files() if module.endswith(".settings")) if name == "stages" else []
    )
    code = f"import sys, {', '.join(modules + settings)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_files_and_functions_are_short():
    texts = {file: file.read_text(encoding="utf-8") for file in files().values()}
    functions = [
        (file, node)
        for file in texts
        for node in ast.walk(ast.parse(texts[file]))
        if isinstance(node, ast.FunctionDef)
    ]
    assert not [file for file in texts if texts[file].count("\n") > LONGEST_FILE]
    assert not [
        (file, node.name)
        for file, node in functions
        if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]


def test_few_things_at_the_top():
    assert len([entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]) <= MOST_ENTRIES


def test_the_tree_in_the_readme_names_each_file_in_its_room():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## Architecture", 1)[1].split("```")[1]
    named: dict[str, set[str]] = {}
    here, outer = "", ""
    for line in tree.splitlines()[1:]:
        if match := re.match(r"(  +)([a-z]+)/", line):
            outer = match[2] if len(match[1]) == 2 else outer
            here = match[2] if len(match[1]) == 2 else f"{outer}/{match[2]}"
        named.setdefault(here, set()).update(re.findall(r"[a-z_]+", line))
    for module, file in files().items():
        place = file.relative_to(PACKAGE).parent.as_posix()
        if file.name != "__init__.py" and place != ".":
            assert file.stem in named[place], module
        assert place == "." or place in named, place
    for place in named:
        assert (PACKAGE / place).is_dir() or (ROOT / place).is_dir(), place
