"""YAML files as trees of plain values; one that is none, or far too large for ours, is one clear line.

What YAML can say and nobody needs here is refused by name: tags (``!!python/...``, ``!!timestamp``), a key
that is given twice, aliases that grow without bound. A date without a tag is text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from diffbase.cli import InputError
from diffbase.system_error import read_bytes

MOST = 512 << 10
"""Bytes of the largest file that is read: a sweep of 1,000 points takes a third of it."""
DEPTH = 50
"""Mappings and lists in each other; the deepest of ours has 5."""
NODES = 50_000
"""Values and keys, those behind an alias counted wherever it stands."""
BITS = 1024
"""Of a whole number: far beyond every limit of a schema, and soon written."""
_TAG = "tag:yaml.org,2002:"
_DATES = ("timestamp", "value")  # which are read as text where no tag says so


def read(path: Path, missing: str) -> Any:
    """What is in a YAML file. InputError where there is none, which says ``missing``, or it is no YAML."""
    try:
        data = read_bytes(path, MOST + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{path}: {missing}") from None
    if len(data) > MOST:
        raise InputError(f"{path}: more than {MOST} bytes")
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Any:
    """The tree in ``data``: plain values, lists and dicts. An InputError begins with ``where``."""
    try:
        loader = _Loader(data.decode("utf-8"))
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        words = ", ".join(filter(None, [error.context, error.problem]))
        raise InputError(f"{where}: not a YAML file: {place}{words:.300}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the scanner has no error for \\U00110000
        words = " ".join(str(error).split())
        raise InputError(f"{where}: not a YAML file: {words:.300}") from error


class _Loader(yaml.SafeLoader):
    """A safe loader with limits, whose every complaint is a YAMLError."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0
        self.sizes: dict[int, int] = {}  # of a node that has an anchor, with all below it

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """A node, counted: before anything is built of it, and before Python's stack could end."""
        before = self.nodes
        self.depth += 1
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        if self.depth > DEPTH:
            raise _refused(f"nested more than {DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise _refused(f"*{event.anchor:.100} lies in itself", event)
            self.nodes += self.sizes[id(node)]
        else:
            self.nodes += 1
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > NODES:
            raise _refused(f"more than {NODES} values", event)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """A value. What the constructors of a tag raise by themselves becomes a complaint with its place."""
        try:
            return super().construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):
            kind, value = node.tag.removeprefix(_TAG), str(node.value)
            raise _refused(f"{value!r:.60} is no {kind}", node) from None

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping. A key that is given twice in it is a mistake: silently the last one would count."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (name := _name(key)) in seen:
                raise _refused(f"{key.value!r:.100} is given twice", key)
            seen.add(name)
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        """Put what ``<<`` merges into a mapping: its own keys win, then those of the first one merged.

        PyYAML lets a merged mapping's own merge win over its keys.
        """
        own, merged = [], []
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                own.append((key, value))
                continue
            for one in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(one, MappingNode):
                    raise _refused("<< takes a mapping, or a list of mappings", one)
                self.flatten_mapping(one)
                merged += one.value
        pairs = {_name(key): (key, value) for key, value in [*reversed(merged), *own]}
        node.value = list(pairs.values())


def _name(key: Node) -> Any:
    return (key.tag, key.value) if isinstance(key, ScalarNode) else id(key)


def _refused(what: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, what, place.start_mark)


def _whole(loader: _Loader, node: ScalarNode) -> int:
    if len(node.value) > BITS:
        raise _refused(f"a number of {len(node.value)} digits", node)
    number = int(yaml.constructor.SafeConstructor.construct_yaml_int(loader, node))
    if number.bit_length() > BITS:
        raise _refused(f"a number of more than {BITS} bits", node)
    return number


def _unknown(loader: _Loader, node: Node) -> Any:
    tag = node.tag.replace(_TAG, "!!")
    raise _refused(f"tag {tag:.100} is not read here", node)


_KNOWN = ("null", "bool", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    **{_TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind] for kind in _KNOWN},
    _TAG + "int": _whole,
    None: _unknown,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in _DATES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
