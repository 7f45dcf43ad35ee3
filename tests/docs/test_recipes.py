"""docs/recipes.md quotes the committed results of the races."""

from __future__ import annotations

from benchmarks.recipe_tables import table_of_results
from tests.paths import REPOSITORY


def test_its_table_is_that_of_the_results() -> None:
    page = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert "\n".join(table_of_results()) in page
