"""The safe loader of PyYAML without what surprises or explodes, for `yaml_text.load_yaml`, which says what it
refuses.
"""

from __future__ import annotations

import math
from typing import Any

import yaml

from cai_cli.rows.json_text import DEEPEST, LONGEST_INTEGER, SURROGATE, is_unicode

MOST_NODES = 20_000  # texts, lists and mappings, each as often as aliases repeat it
STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
TEXT_ANYWAY = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")


class Loader(yaml.SafeLoader):
    """`nodes` counts what has been read, unfolded; `sizes` what each node unfolds to."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in TEXT_ANYWAY]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self.nodes = 0
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self.depth += 1
        if self.depth > DEEPEST:
            raise refusal(f"nested more than {DEEPEST} levels deep", event)
        if getattr(event, "tag", None) not in (None, STRING):
            raise refusal(f"the tag {event.tag} is not read", event)
        before = self.nodes
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise refusal(f"the alias *{event.anchor} stands inside of what it names", event)
            self.nodes += self.sizes[id(node)]
        else:
            self.nodes += 1
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > MOST_NODES:
            raise refusal(f"unfolds to more than {MOST_NODES} texts, lists and mappings", event)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (STRING, MERGE):
                shown = key.value[:80] if isinstance(key, yaml.ScalarNode) else f"[a {key.id}]"
                raise refusal(
                    f"the key {shown} is read as {key.tag.rpartition(':')[2]}, not as text: put quotes round it",
                    key,
                )
            if key.value in seen:
                raise refusal(f"the key {key.value[:80]!r} is given twice", key)
            seen.add(key.value)
        return node

    def construct_scalar(self, node: Any) -> str:
        text = str(super().construct_scalar(node))
        if not is_unicode(text):
            raise refusal(SURROGATE, node)
        return text

    def whole_number(self, node: Any) -> int:
        if len(node.value) > LONGEST_INTEGER:
            raise refusal(f"a number of {len(node.value)} digits", node)
        try:
            value = int(self.construct_yaml_int(node))
        except ValueError:
            raise refusal(f"{node.value!r} is no number", node) from None
        if abs(value) >= 10**LONGEST_INTEGER:  # in base 60, as 1:30 is read
            raise refusal("a number that is out of range", node)
        return value

    def finite_number(self, node: Any) -> float:
        value = float(self.construct_yaml_float(node))
        if not math.isfinite(value):
            raise refusal(f"the number {node.value[:40]} is none, or out of range", node)
        return value


Loader.add_constructor("tag:yaml.org,2002:int", Loader.whole_number)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.finite_number)


def refusal(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
