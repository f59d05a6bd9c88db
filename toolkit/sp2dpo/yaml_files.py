"""Read YAML files that people write: strictly, within limits, and with the line of each key."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sp2dpo.files import check_regular, decode_text
from sp2dpo.text import one_line, shorten

LARGEST_YAML = 1_000_000
"""Maximum number of bytes of YAML; PyYAML takes seconds for each megabyte."""
MOST_NODES = 30_000
"""Maximum number of keys, values and list items of YAML, with each alias counted as the content
that it stands for: a few lines of nested aliases can stand for gigabytes."""
_LONGEST_NUMBER = 100  # characters; the time to read `1:1:1...` grows with the square of its length
_LARGEST_KEY = 1 << 60  # from here on, different integers may have the same hash
_MERGE = "tag:yaml.org,2002:merge"  # `<<: *other`: keys written next to it take precedence
_TAG = "tag:yaml.org,2002:"
_COLLECTIONS = (f"{_TAG}map", f"{_TAG}seq")
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values",
    type(None): "nothing",
}
"""Types of values in the words of messages."""
# PyYAML follows YAML 1.1: a number with an exponent needs a dot and a sign, as in 5.0e-7.
EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")
"""A number that PyYAML reads as text."""
Keys = tuple[Any, ...]
"""Path of a value in a file: keys of mappings and indices of lists."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, values that a tag makes invalid, and huge documents.

    Args:
        text: The document.
        aliases: Whether aliases (`*name`) are read.
    """

    def __init__(self, text: str, *, aliases: bool) -> None:
        super().__init__(text)
        self._aliases = aliases
        self._read = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and not self._aliases:
            raise _refusal(
                event, f"the alias *{event.anchor}: files that come with data hold no aliases"
            )
        self._read += 1
        # While the document is read, so that no more of it is held.
        self._check_size(self._read, event)
        node: Any = super().compose_node(parent, index)
        # An alias inside its own anchor has no size yet: it would stand for endless content.
        if id(node) not in self._sizes and isinstance(event, yaml.AliasEvent):
            raise _refusal(event, f"the alias *{event.anchor} stands for content that contains it")
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
            self._check_size(self._sizes[id(node)], node)
            self._check_tag(node, event)
        return node

    def _size(self, node: Any) -> int:
        """Return the number of nodes that a node stands for."""
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(part)] for pair in parts for part in pair)
        return 1 + sum(self._sizes[id(part)] for part in parts)

    def _check_size(self, size: int, place: Any) -> None:
        if size > MOST_NODES:
            raise _refusal(
                place, f"more than {MOST_NODES:,} keys, values and items, with those of aliases"
            )

    def _check_tag(self, node: yaml.Node, event: Any) -> None:
        """Refuse a scalar that a tag does not fit: PyYAML fails with any exception."""
        if isinstance(node, yaml.CollectionNode):
            if node.tag not in _COLLECTIONS and node.tag.startswith(_TAG):
                raise _refusal(event, f"the tag !!{node.tag.removeprefix(_TAG)} is not read")
            return
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _refusal(event, f"a number of more than {_LONGEST_NUMBER} characters")
        implicit = self.resolve(yaml.ScalarNode, node.value, (True, False))
        fits = node.tag == f"{_TAG}str" or node.tag == implicit
        fits |= node.tag == f"{_TAG}float" and bool(EXPONENT.fullmatch(node.value))
        if node.tag.startswith(_TAG) and not fits:
            kind = node.tag.removeprefix(_TAG)
            raise _refusal(event, f"{shorten(repr(node.value), 80)} is not read as !!{kind}")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Read before the base class replaces each merge key by the entries that it stands for.
        written = [key for key, _ in node.value if key.tag != _MERGE]
        keys: set[Hashable] = set()
        for key_node in written:
            key: Any = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # the base class reports it
            if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
                raise _refusal(key_node, f"the key {key} is too large a number: put it in quotes")
            if key in keys:
                raise _refusal(key_node, f"key {shorten(str(key), 80)} is written twice")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def _refusal(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


@dataclass(frozen=True, eq=False)
class YamlFile:
    """A YAML file that holds a mapping.

    Attributes:
        path: The file.
        values: Keys and values of the mapping.
        root: The file as PyYAML's node graph, which records where each key is written.
    """

    path: Path
    values: dict[str, Any]
    root: yaml.Node

    def line(self, keys: Keys) -> int:
        """Return the line, from 1, of a key or list item, or of the nearest parent in the file."""
        node, line = self.root, self.root.start_mark.line + 1
        for key in keys:
            child = _child(node, key)
            if child is None:
                break
            key_node, node = child
            line = key_node.start_mark.line + 1
        return line


def _child(node: yaml.Node, key: Any) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the node that shows where an entry is written, and the node of its value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        item = node.value[key]
        return item, item
    if isinstance(node, yaml.MappingNode):
        # The loader puts merged entries first, so the last match is the one that counts.
        loader = yaml.SafeLoader("")  # one for all keys: there may be thousands
        for key_node, value_node in reversed(node.value):
            if _scalar(key_node, loader) == key:
                return key_node, value_node
    return None


def _scalar(node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    if node.tag == f"{_TAG}str":
        return node.value
    # Keys are compared as values: YAML reads the key 1 as a number and the key on as a bool.
    return loader.construct_object(node, deep=True)


def read_yaml_file(path: Path, *, aliases: bool = True) -> YamlFile:
    """Read a YAML file, with the line of each key.

    Args:
        path: The file.
        aliases: Whether aliases (`*name`) are read; files that come with data need none.

    Raises:
        ValueError: If the file is not valid YAML (with line and column), not a mapping, or too
            large.
        OSError: If the file cannot be read.
    """
    if not aliases:  # a person may pass a pipe
        check_regular(path)
    with path.open("rb") as file:
        # One byte more than allowed shows that the file is larger, without reading all of it.
        content = file.read(LARGEST_YAML + 1)
    if len(content) > LARGEST_YAML:
        raise ValueError(f"{path}: larger than {LARGEST_YAML // 1_000_000} MB: not a settings file")
    text = decode_text(content, where=f"{path}: not valid YAML")
    values, root = parse_yaml(text, where=str(path), aliases=aliases)
    if root is None or not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, not {type_name(values)}")
    return YamlFile(path=path, values=values, root=root)


def parse_yaml(text: str, *, where: str, aliases: bool) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML document, and its node graph; None and None if it is empty.

    Args:
        text: The document.
        where: Name of the file, with which messages begin.
        aliases: Whether aliases (`*name`) are read; documents that come with data need none.

    Raises:
        ValueError: If it is not valid YAML (with line and column), has a key twice, is larger than
            `LARGEST_YAML`, or has more than `MOST_NODES` nodes.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"{where}: larger than {LARGEST_YAML // 1_000_000} MB: not read as YAML")
    try:
        # In two steps, because yaml.load does not return the nodes, which know their lines.
        loader = _StrictLoader(text, aliases=aliases)
        root = loader.get_single_node()
        return None if root is None else loader.construct_document(root), root
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        # PyYAML splits some messages: "expected a single document", "but found another document".
        split = error.context and (error.problem or "").startswith("but ")
        problem = f"{error.context}, {error.problem}" if split else error.problem
        raise ValueError(f"{where}: not valid YAML{place}: {problem}") from error
    # PyYAML raises a plain ValueError for an impossible date such as 2026-13-45.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises like `read_yaml_file`."""
    return read_yaml_file(path).values


def type_name(value: Any) -> str:
    """Return the type of a YAML or JSON value in words, for messages."""
    return KINDS.get(type(value), type(value).__name__)
