"""Options in groups: one flat list of flags to the outside, one door to build them by."""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Annotated, ClassVar, get_type_hints

import pytest

from cai_cli import stages
from cai_cli.console.groups import build, changed, check_needs, flags_of, flags_read, needs_of, values_of
from cai_cli.console.options import RUNTIME, Needs, Part, flag
from cai_cli.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    NEEDS: ClassVar[Needs] = {"size": ("colour",)}

    colour: Annotated[str | None, flag("A", "Its colour."), RUNTIME] = None
    size: int = 3
    kind: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    depth: float

    def __post_init__(self) -> None:
        if self.inner.size > 9:
            raise UserError("--size is too large", "make it smaller")


@dataclass(frozen=True, kw_only=True)
class Options:
    first: int = 1
    outer: Outer
    last: str


def all_options() -> list[type]:
    modules = [
        import_module(f"cai_cli.stages.{found.name}") for found in pkgutil.iter_modules(stages.__path__)
    ]
    return [module.Options for module in modules if hasattr(module, "Options")]


def test_groups_are_flat_to_the_outside_in_the_order_of_the_fields():
    flags = flags_of(Options)
    assert list(flags) == ["first", "colour", "size", "kind", "depth", "last"]
    assert [flag.default for flag in flags.values()] == [1, None, 3, "plain", *[inspect.Parameter.empty] * 2]
    assert flags["colour"].part is RUNTIME and flags["size"].part is Part.CONTENT


def test_values_go_in_by_name_and_come_out_by_name():
    options = build(Options, last="x", depth=0.5, size=4)
    assert (options.outer.inner.size, options.outer.depth, options.first) == (4, 0.5, 1)
    assert values_of(options) == {
        "first": 1,
        "colour": None,
        "size": 4,
        "kind": "plain",
        "depth": 0.5,
        "last": "x",
    }
    new = {"colour": "red", "last": "y", "kind": "wild"}
    assert values_of(changed(options, **new)) == {**values_of(options), **new}
    assert values_of(options)["colour"] is None
    for wrong in ({"width": 1}, {"outer": options.outer}):
        with pytest.raises(TypeError):
            build(Options, last="x", depth=0.5, **wrong)
    with pytest.raises(TypeError, match="depth"):
        build(Options, last="x")
    with pytest.raises(UserError, match="too large"):
        changed(options, size=10)


def test_a_need_of_a_group_holds_for_the_command():
    assert needs_of(Options) == {"size": ("colour",)}
    options = build(Options, last="x", depth=0.5, size=4)
    with pytest.raises(UserError, match="--size does nothing without --colour"):
        check_needs(options, {"size"})
    check_needs(changed(options, colour="red"), {"size"})
    assert flags_read(options) == ["--first", "--colour", "--kind", "--depth", "--last"]


def declared(kind: type) -> list[str]:
    """The names of all flags, as often as they are there."""
    hints = get_type_hints(kind)
    return [
        name
        for field in fields(kind)
        for name in (declared(hints[field.name]) if is_dataclass(hints[field.name]) else [field.name])
    ]


def test_no_command_has_a_flag_twice():
    assert len(all_options()) > 20
    for kind in all_options():
        names = declared(kind)
        assert names == list(flags_of(kind)) and len(names) == len({*names}), kind
