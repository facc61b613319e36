"""The formats of `cai import`, by name."""

from __future__ import annotations

from cai_cli.importers import (
    hh_rlhf,
    paper_chains,
    paper_samples,
    preferences,
    prompt_sets,
    red_team,
    tables,
)
from cai_cli.importers.formats import Format

MODULES = (hh_rlhf, red_team, prompt_sets, paper_chains, paper_samples, preferences, tables)
FORMATS: dict[str, Format] = {name: found for module in MODULES for name, found in module.FORMATS.items()}
