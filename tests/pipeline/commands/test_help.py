"""`pion help` prints the pages of docs/, and each topic that a message names is there."""

import ast
import re
import sys

import pytest

from pipeline.commands.help import about
from tests.paths import REPOSITORY

SOURCES = sorted(
    path for room in ("pion", "pipeline") for path in (REPOSITORY / room).rglob("*.py")
)
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


def messages(about_what):
    """Yield the texts of the code that are no docstrings, each with its file."""
    for path in SOURCES:
        code = path.read_text(encoding="utf-8")
        tree = ast.parse(code if about_what in code else "")
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in told:
                yield path, node.value


def test_each_topic_that_a_message_names_is_there():
    named = {
        t for _, text in messages("pion help") for t in re.findall(r"pion help ([a-z][\w-]*)", text)
    }
    assert len(named) > 10
    assert [topic for topic in named if not about(topic)] == []


def test_no_message_names_a_file_of_the_documentation():
    # docs/jobs.md says that a program writes it.
    files = [path.name for path, text in messages("docs/") if re.search(r"docs/[\w-]+\.md", text)]
    assert files == ["help_job.py"]


def test_help_lists_the_pages_and_prints_one_as_it_is(pion):
    _, listed, _ = pion("help")
    for page in PAGES:
        title = re.search(r"(?m)^# (.*)$", page.read_text(encoding="utf-8"))[1]
        assert re.search(rf"(?m)^  {page.stem} +{re.escape(title)}$", listed)
    text = (REPOSITORY / "docs" / "sizing.md").read_text(encoding="utf-8")
    assert pion("help", "sizing") == (0, text, "")


def test_a_heading_of_one_page_is_a_topic(pion):
    code, out, _ = pion("help", "exit-codes")
    assert code == 0
    assert out.startswith("## Exit codes\n")
    assert "# Commands" not in out.replace("## Exit codes", "")


def test_at_a_terminal_a_page_is_laid_out_and_links_are_topics(pion, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = pion("help", "sizing")
    assert code == 0
    out = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert "# " not in out
    assert "(pion help own-data)" in " ".join(out.split())
    assert ".md" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_search_names_the_sections_that_have_all_words(pion):
    code, out, _ = pion("help", "--search", "exit", "74")
    assert code == 0
    assert "pion help commands: Exit codes\n" in out
    assert pion("help", "--search", "zzyzx")[0] == 2


@pytest.mark.parametrize("topic", ["sizin", "no-such-page"])
def test_an_unknown_topic_is_answered_with_how_to_find_one(pion, topic):
    code, _, err = pion("help", topic)
    assert code == 2
    assert f"`pion help --search {topic}` finds words in them" in err
    assert ("did you mean sizing?" in err) == (topic == "sizin")
