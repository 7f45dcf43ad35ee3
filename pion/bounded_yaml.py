"""Read YAML whose size is bounded: bytes, levels, and nodes after each alias is replaced.

A short file with aliases can stand for more nodes than fit into memory. They are counted here while
the file is parsed, before any value is made.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from pion.errors import BadInput
from pion.untrusted import DEEPEST, LARGEST_JOB, read_file, too_large

MOST_NODES = 10_000
# A number of more characters is no number that a job needs.
LONGEST_NUMBER = 1000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuch(yaml.MarkedYAMLError):
    """The document is YAML, but exceeds a bound. `problem` says which."""


@dataclass(frozen=True)
class _Size:
    """The size of a node with all nodes below it, each alias replaced by what it stands for."""

    nodes: int
    characters: int
    levels: int


# What PyYAML raises for values of a tag that they do not fit, and for escapes of no character.
_UNFIT = (ArithmeticError, AttributeError, LookupError, ValueError)


class BoundedLoader(yaml.SafeLoader):
    """A SafeLoader that raises TooMuch, a YAMLError, for a document that exceeds a bound.

    All that it raises is a MarkedYAMLError, which knows the line.
    """

    def __init__(self, text: str) -> None:
        try:
            super().__init__(text)
        except ReaderError as error:
            before = text[: error.position].split("\n")
            mark = yaml.Mark("", error.position, len(before) - 1, len(before[-1]), None, 0)
            problem = f"YAML has no character U+{ord(text[error.position]):04X}"
            raise yaml.MarkedYAMLError(None, None, problem, mark) from None
        self._nodes = self._characters = 0
        self._depth = self._deepest = 0
        # By the id of an anchored node that is complete. The node is kept, so that its id stays.
        self._sizes: dict[int, tuple[yaml.Node, _Size]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node, as SafeLoader does. Raises TooMuch."""
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        node: Any
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise TooMuch(None, None, "an alias contains itself", mark)
            self._count(self._sizes[id(node)][1], mark)
            return node
        length = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        nodes, characters, deepest = self._nodes, self._characters, self._deepest
        self._deepest = 0
        self._count(_Size(1, length, 1), mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        if event.anchor is not None:
            levels = self._deepest - self._depth
            size = _Size(self._nodes - nodes, self._characters - characters, levels)
            self._sizes[id(node)] = node, size
        self._deepest = max(self._deepest, deepest)
        return node

    def fetch_more_tokens(self) -> Any:
        """Read further, as SafeLoader does. Raises MarkedYAMLError."""
        try:
            return super().fetch_more_tokens()
        except _UNFIT:
            problem = "there is no such character"
            raise yaml.MarkedYAMLError(None, None, problem, self.get_mark()) from None

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a node, as SafeLoader does. Raises MarkedYAMLError."""
        try:
            return super().construct_object(node, deep)
        except _UNFIT:
            problem = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark) from None

    def _count(self, size: _Size, mark: Any) -> None:
        self._nodes += size.nodes
        self._characters += size.characters
        self._deepest = max(self._deepest, self._depth + size.levels)
        after = "after each alias is replaced by what it stands for"
        if self._nodes > MOST_NODES:
            raise TooMuch(None, None, f"more than {MOST_NODES:,} values {after}", mark)
        if self._characters > LARGEST_JOB:
            raise TooMuch(None, None, f"more than {LARGEST_JOB:,} characters {after}", mark)
        if self._deepest > DEEPEST:
            raise TooMuch(None, None, f"nested deeper than {DEEPEST} levels", mark)


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
        problem = f"a number of {len(node.value):,} characters"
        raise TooMuch(None, None, problem, node.start_mark)
    if not node.value.isascii():
        try:
            node.value.encode()
        except UnicodeEncodeError:
            raise TooMuch(None, None, "half a character in a text", node.start_mark) from None


def read_yaml(path: Path, what: str) -> str:
    """Return the text of a file that people wrote; errors call it `what`, such as `job file`.

    Each line ends with a line feed, whatever the editor wrote.

    Raises BadInput, with the file nearest in name, for a file that is not there.
    """
    try:
        return read_file(path, LARGEST_JOB).decode().replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        siblings = {p.name: p for p in sorted(path.parent.glob("[!.]*.yaml"))}
        close = difflib.get_close_matches(path.name, siblings, 1, 0.5)
        hint = f"; did you mean {siblings[close[0]]}?" if close else ""
        raise BadInput(f"no {what} at {path}{hint}") from None
    except BadInput as error:
        raise BadInput(f"can't read the {what}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"can't read the {what} {path}: {error}") from None


def check_yaml(text: str, where: str) -> None:
    """Raise BadInput that names `where` unless every document in `text` is bounded YAML."""
    if len(text) > LARGEST_JOB:
        raise too_large(where, LARGEST_JOB)
    try:
        list(yaml.compose_all(text, Loader=BoundedLoader))
    except yaml.MarkedYAMLError as error:
        raise unreadable(error, where) from None


def unreadable(error: yaml.MarkedYAMLError, where: str) -> BadInput:
    """Return the error for a text that can't be read, with its line and column if known."""
    mark = error.problem_mark or error.context_mark
    at = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    prefix = "" if isinstance(error, TooMuch) else "not YAML: "
    return BadInput(f"{where}{at}: {prefix}{error.problem or error.context}")
