"""A command's options: a frozen dataclass whose fields are flags, or groups of flags.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        output: OutputOptions
        hardware: DeviceOptions
        model: Annotated[str, flag("Model", "The language model that replies."), MODEL]

    options = build(Options, out=Path("replies.jsonl"), model="lm")
    options.output.out, options.hardware.device, options.model

A function takes the group that it reads. The command line, --config files and manifests know no groups: there
the flags are one list, those of a group in its field's place, and no name is there twice.

A class may say in `NEEDS` which of its options nothing reads unless another one of the command is on:
`check_needs` refuses them where they are given all the same.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from cai_cli.console.options import Needs, Part, flag_name
from cai_cli.errors import UserError

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Flag:
    """An option as its dataclass declares it; `default` is `inspect.Parameter.empty` where there is none."""

    annotation: Any
    default: Any

    @property
    def marks(self) -> tuple[Any, ...]:
        return getattr(self.annotation, "__metadata__", ())

    @property
    def part(self) -> Part:
        """Its part in an artifact's identity."""
        return next((mark for mark in self.marks if isinstance(mark, Part)), Part.CONTENT)


def groups_of(kind: Any) -> dict[str, Any]:
    """The groups that an options dataclass has, by the names of their fields."""
    return {name: hint for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}


def flags_of(kind: Any) -> dict[str, Flag]:
    """All flags of an options dataclass by name, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(kind):
        hint, missing = hints[field.name], field.default is dataclasses.MISSING
        if dataclasses.is_dataclass(hint):
            found |= flags_of(hint)
        else:
            found[field.name] = Flag(hint, inspect.Parameter.empty if missing else field.default)
    return found


def build(kind: type[Kind], /, **values: Any) -> Kind:
    """The options with these values; flags that are not named have their defaults."""
    groups = {
        name: build(group, **{flag: values.pop(flag) for flag in flags_of(group) if flag in values})
        for name, group in groups_of(kind).items()
    }
    return kind(**groups, **values)


def values_of(options: Any) -> dict[str, Any]:
    """The value of each flag by name, in their order."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        found |= values_of(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def changed(options: Kind, /, **values: Any) -> Kind:
    """The same options with some other values."""
    return build(type(options), **{**values_of(options), **values})


def needs_of(kind: Any) -> Needs:
    """Option -> what else has to be on for anything to read it, one of these (see `is_on`)."""
    found = dict(getattr(kind, "NEEDS", {}))
    for group in groups_of(kind).values():
        found |= needs_of(group)
    return found


def is_on(values: dict[str, Any], other: str) -> bool:
    """Whether an option is on, or, of `option=value`, has the value; a command may not have that option."""
    name, mark, wanted = other.partition("=")
    return bool(values.get(name) == wanted if mark else values[name])


def flags_read(options: Any) -> list[str]:
    """The command's flags, without those that nothing reads as the others are: what advice may name."""
    values = values_of(options)
    needs = needs_of(type(options)).items()
    off = {name for name, others in needs if not any(is_on(values, other) for other in others)}
    return [flag_name(name) for name in values if name not in off]


def check_needs(options: Any, given: Collection[str]) -> None:
    """Raise UserError for an option among those `given` that nothing reads, since what would read it is off."""
    values = values_of(options)
    for name, others in needs_of(type(options)).items():
        off = name not in given or values[name] is None or values[name] is False
        if off or any(is_on(values, other) for other in others):
            continue
        had = [other.split("=") for other in others if other.partition("=")[0] in values]
        this, those = flag_name(name), " or ".join(" ".join([flag_name(own), *value]) for own, *value in had)
        if isinstance(values[had[0][0]], float):  # 0, or it would be on
            hint = f"leave {this} out, or give {those} a value above 0"
            raise UserError(f"{this} does nothing with {those} 0", hint)
        raise UserError(f"{this} does nothing without {those}", f"leave {this} out, or add {those}")


def refuse(options: Any, names: Iterable[str], reason: str, step: str) -> None:
    """Raise UserError for one of these options that has another value than its default, since nothing reads it."""
    defaults, given = flags_of(type(options)), values_of(options)
    for name in names:
        if given[name] != defaults[name].default:
            raise UserError(f"{flag_name(name)} does nothing {reason}", f"leave it out, or {step}")
