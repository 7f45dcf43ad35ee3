"""`pion run --help-job`: every field of a job file, on a terminal or one plain line each."""

from __future__ import annotations

import io

from pipeline.job.every_field import PARTS, chapters

COLUMNS = (("key", 5), ("type", 3), ("default", 3), ("meaning", 7), ("part", 2))


def help_job(width: int | None = None) -> str:
    """Return tables `width` columns wide, or one line a field for other programs to read."""
    return _lines() if width is None else _tables(width)


def _lines() -> str:
    lines = [f"# {part}: {meaning}" for part, meaning in PARTS.items()]
    for chapter in chapters():
        lines += ["", f"# {chapter.title}"]
        lines += [
            f"{f.path}  ({f.type}; {f.default}; {f.part})  {f.meaning}" for f in chapter.fields
        ]
    return "\n".join(lines).strip()


def _tables(width: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    for part, meaning in PARTS.items():
        console.print(Text.assemble((part, "bold"), f": {meaning}"))
    console.print()
    for chapter in chapters():
        title = Text(chapter.title)
        table = Table(title=title, title_justify="left", box=None, expand=True, pad_edge=False)
        for name, ratio in COLUMNS:
            table.add_column(name, ratio=ratio, overflow="fold", header_style="dim")
        for f in chapter.fields:
            cells = [Text(cell) for cell in (f.path, f.type, f.default, f.meaning, f.part)]
            cells[0].stylize("bold")
            table.add_row(*cells)
        console.print(table)
        console.print()
    return console.export_text(styles=True).rstrip()
