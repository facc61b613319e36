"""The settings of OpenRLHF and verl that `cai export` writes for: their names and types, from the packages
themselves.

    pip install --no-deps openrlhf==0.11.2 verl==0.9.1 --target engines
    python scripts/engine_schemas.py engines      -> tests/training/export/openrlhf.json, verl.json

Both packages are under the Apache License 2.0; kept are names and types of settings, no code of theirs. To be run
anew for another version, with `VERSION` in cai_cli/training/export/.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import sys
import types
from collections.abc import Callable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).parents[1] / "tests" / "training" / "export"
# Parts of verl's settings that have nothing to do with ours
FOREIGN = re.compile(
    "_target_|profiler|distillation|turbo|qat|mtp|transfer_queue|tiled|skip|^(reward_model|sandbox)"
)
LICENCE = "names and types of the settings of {} (Apache License 2.0), by scripts/engine_schemas.py"


def run_openrlhf(package: Path, train: Callable[[Any], object]) -> None:
    """What `python -m openrlhf.cli.train_ppo_ray` does with sys.argv, with `train` in place of its training.

    The program's imports, Ray and vLLM among them, are left out.
    """
    spec = importlib.util.spec_from_file_location("openrlhf.utils.config", package / "utils" / "config.py")
    assert spec and spec.loader
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    sys.modules |= {"openrlhf.utils": types.ModuleType("openrlhf.utils"), "openrlhf.utils.config": config}
    program = ast.parse((package / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))
    main = next(node for node in program.body if isinstance(node, ast.If))
    names = {"argparse": argparse, "os": os, "datetime": datetime, "train": train}
    exec(compile(ast.Module(main.body, []), "train_ppo_ray", "exec"), names)


def openrlhf_schema(package: Path) -> dict[str, Any]:
    """Flag -> its type; "flag" for one without a value, a list of types for several values, choices by name."""
    found: dict[str, Any] = {}

    class Seen(Exception):
        pass

    def look(parser: argparse.ArgumentParser, *_: Any) -> None:
        for action in parser._actions:
            kind: Any = "flag" if action.nargs == 0 else getattr(action.type, "__name__", "str")
            kind = list(action.choices) if action.choices else kind
            kind = [kind] * action.nargs if isinstance(action.nargs, int) and action.nargs else kind
            for name in action.option_strings:
                found[name] = kind
        raise Seen

    argparse.ArgumentParser.parse_args = look  # type: ignore[assignment, method-assign]
    try:
        run_openrlhf(package, print)
    except Seen:
        return found
    raise AssertionError("its program parses no arguments")


def verl_schema(package: Path) -> dict[str, str]:
    """Setting -> the type of its default; "any" where that is null, missing or refers to another."""
    whole = yaml.safe_load(
        (package / "trainer/config/_generated_ppo_trainer.yaml").read_text(encoding="utf-8")
    )
    found: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}".lstrip("."))
        elif not FOREIGN.search(name):
            refers = isinstance(value, str) and (value.startswith("${") or value == "???")
            found[name] = "any" if value is None or refers else type(value).__name__

    walk(whole, "")
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    for name, read in (("openrlhf", openrlhf_schema), ("verl", verl_schema)):
        schema = {
            "about": LICENCE.format(name),
            "version": metadata.version(name),
            "settings": read(folder / name),
        }
        (OUT / f"{name}.json").write_text(json.dumps(schema, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
