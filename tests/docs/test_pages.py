"""A page of docs/ is one task, which is read in minutes, or a reference."""

from tests.paths import REPOSITORY

PAGES = {page.stem: page.read_text("utf-8") for page in (REPOSITORY / "docs").glob("*.md")}
REFERENCES = {"architecture", "jobs", "performance", "troubleshooting"}


def test_a_task_has_at_most_1500_words():
    words = {name: len(text.split()) for name, text in PAGES.items()}
    assert {name for name, many in words.items() if many > 1500} <= REFERENCES
    assert sum(words.values()) <= 55_000


def test_what_was_never_tried_stands_on_one_page():
    for name in PAGES.keys() - {"untried"}:
        text = PAGES[name].lower()
        for words in ("nobody has rented", "never rented", "nobody has measured"):
            assert words not in text, name
