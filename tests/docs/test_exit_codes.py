"""The table of exit codes in docs/commands.md, `pion --help` and the error classes agree."""

import re

import pion.errors
from pipeline.cli import EXIT_CODES
from tests.paths import REPOSITORY

TEXT = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")


def first_clause(meaning):
    """Return the first words of a meaning: `interrupted` of `Interrupted; state is saved.`"""
    return re.split(r"[.,;:(]", meaning)[0].strip().lower()


def in_the_document():
    table = TEXT.partition("| exit code | meaning |")[2].partition("\n\n")[0]
    return {
        int(code): first_clause(meaning)
        for code, meaning in re.findall(r"(?m)^\| (\d+) \| (.+) \|$", table)
    }


def in_the_help():
    lines = re.findall(r"(?m)^  (\d+) +(.+)$", EXIT_CODES)
    return {int(code): first_clause(meaning) for code, meaning in lines}


def test_the_document_and_the_help_say_the_same():
    assert in_the_document() == in_the_help()


def test_every_error_ends_in_a_code_that_is_explained():
    classes = [c for c in vars(pion.errors).values() if isinstance(c, type)]
    codes = {c.exit_code for c in classes if issubclass(c, pion.errors.PionError)}
    assert codes | {0} == in_the_help().keys()
