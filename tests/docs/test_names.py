"""Every file, function and link that the documents name exists."""

import ast
import re
from functools import cache

import pytest

from tests.paths import REPOSITORY

PRINTED_CARD = "tests/golden/report/README.md"  # its pictures are not kept
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "sky" / "README.md",
    *sorted(set((REPOSITORY / "tests").rglob("README.md")) - {REPOSITORY / PRINTED_CARD}),
]
ROOTS = r"(?:pion|pipeline|tests|docs|jobs|sky|benchmarks|tools|\.ci)/"
NAMED = re.compile(rf"`({ROOTS}[\w./-]*)(?::([\w.]+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


@cache
def names_in(path):
    """Return the functions, classes and methods of a module, such as `Claim` and `Claim.commit`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for inner in ast.iter_child_nodes(node) if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                found.add(f"{node.name}.{inner.name}")
    return frozenset(found)


def anchors_in(document):
    """Return the anchors that GitHub makes from a document's headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_files_and_functions_it_names_exist(document):
    for path, name in NAMED.findall(document.read_text(encoding="utf-8")):
        assert (REPOSITORY / path).exists(), f"{document.name} names {path}"
        if name:
            assert name in names_in(REPOSITORY / path), f"{document.name} names {path}:{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_links_lead_somewhere(document):
    for path, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {path}"
        if anchor:
            assert anchor in anchors_in(target), f"{document.name} links to {path}#{anchor}"


def test_architecture_names_functions():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert sum(bool(name) for _, name in NAMED.findall(text)) > 20
