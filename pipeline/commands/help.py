"""`pion help`: the pages of docs/. A topic is a page, or a heading that one page has.

Messages of the program name topics, not files: `pion help rewards`. test_help.py reads the
messages, and fails for a topic that is not there.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from itertools import takewhile
from typing import NamedTuple

from pion.errors import BadInput
from pipeline.console.formats import show
from pipeline.machine.own_files import OWN

# Columns of a page, and rows of a search.
WIDEST, MOST_FOUND = 100, 20
_NOT_IN_A_TOPIC = re.compile(r"[^\w\- ]")
_LINK = re.compile(r"\[([^\]]*)\]\(([\w-]+)\.md(?:#[\w-]+)?\)")


class Section(NamedTuple):
    """A heading of a page, and the lines from there to the next heading. A page begins with its
    title, of level 1."""

    page: str
    level: int
    heading: str
    lines: list[str]

    @property
    def topic(self) -> str:
        """The heading as links name it: `pion help add-a-family`."""
        return _topic_of(self.heading)


def _topic_of(heading: str) -> str:
    return _NOT_IN_A_TOPIC.sub("", heading.lower()).replace(" ", "-")


@cache
def sections() -> tuple[Section, ...]:
    """Return the sections of all pages."""
    all_sections: list[Section] = []
    for path in sorted((OWN / "docs").glob("*.md")):
        in_code, begun = False, len(all_sections)
        for line in path.read_text(encoding="utf-8").splitlines():
            in_code ^= line.lstrip().startswith("```")
            marks, _, heading = line.partition(" ")
            if marks and not marks.strip("#") and not in_code:
                all_sections.append(Section(path.stem, len(marks), heading, []))
            if len(all_sections) > begun:
                all_sections[-1].lines.append(line)
    return tuple(all_sections)


def about(topic: str) -> list[Section]:
    """Return the page, or the section with what is in it; nothing if there is no such topic."""
    starts = {
        n: section for n, section in enumerate(sections()) if topic in (section.topic, section.page)
    }
    pages = {n: section for n, section in starts.items() if section.level == 1}
    if len(pages or starts) != 1:
        return []
    first, *rest = sections()[min(pages or starts) :]
    inner = takewhile(
        lambda section: section.page == first.page and section.level > first.level, rest
    )
    return [first, *inner]


def print_topic(topic: str | None) -> None:
    """Print a page or a section, or without a topic the list of pages. Raises BadInput."""
    titles = {one.page: one.heading for one in reversed(sections())}
    if topic is None:
        show("Begin with `pion help index`. `pion help TOPIC` prints a page, and `pion help")
        show("--search WORDS` finds words in the pages. `pion --help` lists the commands.\n")
        show("\n".join(f"  {page:<17}{titles[page]}" for page in sorted(titles)))
        return
    plain = topic.rpartition("#")[2].removesuffix(".md")  # as pages link to each other
    if not (topic_sections := about(plain) or about(_topic_of(plain))):
        close = difflib.get_close_matches(topic, titles, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BadInput(
            f"no page is called {topic!r}{hint}\n`pion help` lists the pages, and "
            f"`pion help --search {topic}` finds words in them"
        )
    text = "\n".join(line for section in topic_sections for line in section.lines)
    if not sys.stdout.isatty():
        show(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-FRX")  # colors, and no pager for a page that fits
    console = Console(width=min(WIDEST, shutil.get_terminal_size().columns))
    with console.pager(styles=True):
        console.print(Markdown(_LINK.sub(_topic_of_link, text), hyperlinks=False))


def _topic_of_link(link: re.Match[str]) -> str:
    label, page = link.groups()
    command = f"`pion help {page}`"
    bare = label == "more" or page in label or "pion help" in label
    return command if bare else f"{label} ({command})"


def search(words: Iterable[str]) -> None:
    """Print the sections that have all of the words, or most of them. Raises BadInput."""
    wanted = [word.lower() for word in " ".join(words).split()]
    hits = []
    for section in sections():
        text = "\n".join(section.lines).lower()
        if present := [word for word in wanted if word in text]:
            line = next(line for line in section.lines if present[0] in line.lower())
            hits.append((-len(present), -sum(map(text.count, present)), section, line.strip()))
    if not hits:
        raise BadInput(f"no page has {' '.join(wanted)!r}. `pion help` lists the pages")
    hits = [hit for hit in sorted(hits) if hit[0] == min(hits)[0]]
    for *_, section, line in hits[:MOST_FOUND]:
        show(f"pion help {section.page}: {section.heading}\n    {line:.{WIDEST - 4}}")
    if len(hits) > MOST_FOUND:
        show(f"and {len(hits) - MOST_FOUND} more: give another word, too")
