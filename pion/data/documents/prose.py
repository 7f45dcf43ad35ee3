"""Clean docstrings and comments, so that only English prose is left."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

# Paragraphs with these words are licenses.
LICENSE = re.compile(r"copyright|licen[sc]e|warrant|all rights reserved|permission to use", re.I)


def prose(docstring: str) -> str:
    """Return a docstring's English text, unwrapped, without examples, licenses, tables and
    markup."""
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", docstring)  # :func:`name`
    text = re.sub(r"``([^`]+)``", r"\1", text)
    paragraphs = [_paragraph(lines) for lines in re.split(r"\n\s*\n", text)]
    return "\n\n".join(p for p in paragraphs if p)


def _paragraph(text: str) -> str:
    """Return a paragraph that is ready to read, or "" if it is not English."""
    lines = [line.rstrip() for line in text.split("\n") if re.search(r"\w", line)]
    text = "\n".join(lines)
    letters = sum(c.isalpha() or c in " ,.\n" for c in text)
    if ">>>" in text or letters < 0.8 * len(text) or LICENSE.search(text):
        return ""
    if re.search(r"[=(:]", text) and _is_code(text):
        return ""
    plain = not any(re.match(r"\s|[-*+•]\s|\d+[.)]\s|:\w+", line) for line in lines[1:])
    return " ".join(line.strip() for line in lines) if plain else text


def comments(text: str, tree: ast.Module) -> Iterator[str]:
    """Yield the English comments of a file, each run of `#` lines unwrapped into paragraphs."""
    inside_strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blocks: list[list[str]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*#+ ?(.*)$", line)
        if match and number not in inside_strings and not line.startswith("#!"):
            blocks[-1].append(match[1])
        elif blocks[-1]:
            blocks.append([])
    for block in blocks:
        comment = "\n".join(block)
        if not _is_code(comment) and len((cleaned := prose(comment)).split()) >= 4:
            yield cleaned


def _is_code(text: str) -> bool:
    """Return whether a text is code: an example, or code that was commented out."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return False
    return True
