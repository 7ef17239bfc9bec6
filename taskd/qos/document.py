"""YAML documents each of whose values knows its line, read as strictly as an operator would wish.

goresctrl, whose formats these are, reads them with ``sigs.k8s.io/yaml``: keys are found whatever
their case, a number may stand where text is wanted, and null counts as absent. That is so here
too; but keys that nobody knows and keys given twice, which it passes over, are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from taskd.errors import InvalidArgument

__all__ = ["Value", "load"]

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


def load(file: Path) -> Value:
    """The document in a file; an empty file is an empty mapping.

    Raises `InvalidArgument`, naming the file and the line, if it cannot be read or is not YAML.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{file}: {exc}", verbatim=True) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        words = ": ".join(filter(None, (exc.context, exc.problem)))
        raise InvalidArgument(f"{where}: {words}", verbatim=True) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise InvalidArgument(f"{file}:{line}: {exc.reason}", verbatim=True) from None
    except RecursionError:
        raise InvalidArgument(f"{file}: is nested too deeply", verbatim=True) from None
    return Value(file, 1, "", node or yaml.ScalarNode(f"{_TAG}null", ""))


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and what is said of it in errors: all its methods raise `InvalidArgument`."""

    file: Path
    line: int
    key: str
    """The key it stands at, as it is written; empty for the whole document."""
    node: yaml.Node

    def error(self, words: str) -> InvalidArgument:
        """An error that names the file, the line, and the key."""
        key = f"{self.key}: " if self.key else ""
        return InvalidArgument(f"{self.file}:{self.line}: {key}{words}", verbatim=True)

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == f"{_TAG}null")

    @property
    def is_text(self) -> bool:
        return bool(self.node.tag == f"{_TAG}str")

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def mapping(self) -> dict[str, Value]:
        """Values by their keys, in order; null is an empty mapping."""
        return {} if self.is_null else self._entries(self.node, ())

    def fields(self, *names: str) -> dict[str, Value]:
        """Values by those of `names` that they stand at; any other key is an error."""
        known = {name.lower(): name for name in names}
        found: dict[str, Value] = {}
        for key, value in self.mapping().items():
            name = known.get(key.lower())
            if name is None:
                raise value.error(f"unknown key; known are {', '.join(names)}")
            if name in found:
                raise value.error("is given twice")
            found[name] = value
        return found

    def items(self) -> list[Value]:
        """The values of a list; null is an empty list."""
        if self.is_null:
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error("is not a list")
        return [Value(self.file, _line(node), self.key, node) for node in self.node.value]

    def text(self) -> str:
        """Text, or a number as it is written; null is the empty text."""
        if self.is_null:
            return ""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error("is not a plain value")
        value = str(self.node.value)
        kind = self.node.tag.removeprefix(_TAG)
        if kind == "int" and not re.fullmatch("[-+]?(0|[1-9][0-9]*)", value):
            # YAML has octal, hexadecimal, and sexagesimal numbers: 010 is 8, 1:30 is 90.
            raise self.error(f"{value} is not a decimal number")
        if kind not in ("str", "int", "float"):
            raise self.error(f"{value!r} is neither text nor a number")
        return value

    def boolean(self) -> bool:
        if self.is_null:
            return False
        if self.node.tag != f"{_TAG}bool":
            raise self.error(f"{self.node.value!r} is neither true nor false")
        return bool(yaml.SafeLoader.bool_values[self.node.value.lower()])

    def _entries(self, node: yaml.Node, merging: tuple[yaml.Node, ...]) -> dict[str, Value]:
        if not isinstance(node, yaml.MappingNode) or node in merging:
            raise self.error("is not a mapping")
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                several = isinstance(value, yaml.SequenceNode)
                for source in value.value if several else [value]:
                    merged = self._entries(source, (*merging, node)) | merged
                continue
            name = str(key.value)
            entry = Value(self.file, _line(key), name, value)
            if key.tag not in (f"{_TAG}str", f"{_TAG}int"):
                raise entry.error("is not text; put it in quotes")
            if name in own:
                raise entry.error("is given twice")
            own[name] = entry
        return merged | own


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
