"""The table of exit codes in docs/commands.md and `pion --help` agree."""

from __future__ import annotations

import re

from pipeline.cli import EXIT_CODES
from tests.paths import REPOSITORY

TEXT = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")


def first_clause(meaning: str) -> str:
    """Return the first words of a meaning: `interrupted` of `Interrupted; state is saved.`"""
    return re.split(r"[.,;:(]", meaning)[0].strip().lower()


def in_the_document() -> dict[int, str]:
    table = TEXT.partition("| exit code | meaning |")[2].partition("\n\n")[0]
    return {
        int(code): first_clause(meaning)
        for code, meaning in re.findall(r"(?m)^\| (\d+) \| (.+) \|$", table)
    }


def in_the_help() -> dict[int, str]:
    lines = re.findall(r"(?m)^  (\d+) +(.+)$", EXIT_CODES)
    return {int(code): first_clause(meaning) for code, meaning in lines}


def test_the_document_and_the_help_say_the_same() -> None:
    assert in_the_document() == in_the_help()
