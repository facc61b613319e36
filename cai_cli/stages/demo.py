"""demo"""
from __future__ import annotations
from dataclasses import dataclass
from cai_cli.options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class Options(OutputOptions):
    pass


def run(options: Options) -> None:
    """Demo."""
