"""Parts of an HTML page: sections, tables, bars and lists. All texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.console.formats import printable


def text(words: object) -> str:
    """Return words from outside, escaped for HTML."""
    return escape(printable(str(words)))


def section(title: str, body: str) -> str:
    """Return a section; `body` is HTML already."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Return a table of texts. Columns from `numbers_from` are aligned right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["" if i < numbers_from else ' class="number"' for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for kind, cell in zip(kinds, row))

    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def bars(rows: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """Return a table of (name, length, numbers): numbers as text, then a bar of the length."""
    longest = max((length for _, length, _ in rows), default=0.0) or 1.0
    lines = [
        f"<tr><td>{text(name)}</td>"
        + "".join(f'<td class="number">{text(number)}</td>' for number in numbers)
        + f'<td class="bar"><span style="width: {100 * length / longest:.1f}%"></span></td></tr>'
        for name, length, numbers in rows
    ]
    return f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'


def items(entries: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a list of (heading, lines)."""
    shown = ["<br>".join(text(line) for line in (heading, *lines)) for heading, lines in entries]
    return f"<ul>{''.join(f'<li>{item}</li>' for item in shown)}</ul>"
