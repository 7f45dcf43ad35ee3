"""Every message that docs/troubleshooting.md quotes is printed by the code, word for word."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

VARIES = "…"
TEXT = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [" ".join(block.split()) for block in re.findall(r"(?s)```text\n(.*?)```", TEXT)]
SECTIONS = re.findall(r"(?m)^### (\d+)\. ", TEXT)


def wording(node: ast.AST) -> str | None:
    """Return the text of a string, with `…` for each value in it; None for other nodes.

    Adjacent literals, and literals joined by `+`, are one text.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(wording(part) or VARIES for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [wording(node.left), wording(node.right)]
        return None if parts == [None, None] else "".join(part or VARIES for part in parts)
    return None


@cache
def messages() -> str:
    """Return all texts in the code, one per line."""
    found = []
    for folder in ("pion", "pipeline"):
        for path in sorted(Path(REPOSITORY, folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = wording(node)
                if text is not None:
                    found.append(" ".join(text.split()))
    return "\n".join(found)


def printed(quote: str) -> bool:
    """Return whether one text of the code has the fixed parts of `quote`, in order."""
    fixed = [re.escape(part) for part in quote.split(VARIES)]
    return re.search(".*".join(fixed), messages()) is not None


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_in_the_code(quote: str) -> None:
    assert printed(quote)


def test_other_words_are_not_found() -> None:
    assert not printed("the disk is brimful; free some space")
    assert not printed("nothing can be saved now: … Pion did not load the file")  # of two messages


def test_they_are_numbered() -> None:
    assert ",".join(SECTIONS) == ",".join(map(str, range(1, 22)))
    assert len(QUOTES) >= 20
