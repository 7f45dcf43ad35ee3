"""Every message that docs/troubleshooting.md quotes is printed by the code, word for word."""

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


def wording(node):
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
def sources() -> tuple[str, ...]:
    """Return the code, file by file."""
    return tuple(
        path.read_text(encoding="utf-8")
        for folder in ("pion", "pipeline")
        for path in sorted(Path(REPOSITORY, folder).rglob("*.py"))
    )


@cache
def messages(source):
    """Return all texts in a file, one per line."""
    texts = (wording(node) for node in ast.walk(ast.parse(source)))
    return "\n".join(" ".join(text.split()) for text in texts if text is not None)


def printed(quote):
    """Return whether one text of the code has the fixed parts of `quote`, in order.

    Only files with all words of `quote` are parsed: the whole code takes seconds.
    """
    fixed = re.compile(".*".join(re.escape(part) for part in quote.split(VARIES)))
    words = re.findall(r"[a-zA-Z]{2,}", quote)
    likely = (source for source in sources() if all(word in source for word in words))
    return any(fixed.search(messages(source)) for source in likely)


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_in_the_code(quote):
    assert printed(quote)


def test_other_words_are_not_found():
    assert not printed("the disk is brimful; free some space")
    # Of two messages in one file, and of two files.
    assert not printed("the store can't be reached. Trying again in … saved for …")
    assert not printed("nothing can be saved now: … Pion did not load the file")


def test_they_are_numbered():
    assert ",".join(SECTIONS) == ",".join(map(str, range(1, 22)))
    assert len(QUOTES) >= 20
