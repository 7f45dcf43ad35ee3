"""The standard library's prose: which text is included, excluded and held out."""

import hashlib
import sys
import sysconfig
from pathlib import Path

import pytest

from pion.data.documents.file_to_documents import Document
from pion.data.documents.python_docs import (
    RECOGNISED_LETTERS,
    definitions,
    documents,
    is_held_out,
    letters_of,
    source_files,
)
from tests.support.waiting import run_to_end


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    return list(documents())


def test_it_is_about_three_megabytes_of_prose(docs: list[Document]) -> None:
    size = sum(len(d.text.encode()) for d in docs)
    assert 2_000_000 < size < 6_000_000
    assert len(docs) > 3000


def test_docstrings_comments_topics_and_compiled_modules_are_all_there(
    docs: list[Document],
) -> None:
    text_of = dict.fromkeys(("textwrap.py", "builtins", "topics/assert"), "")
    for document in docs:
        if document.origin in text_of:
            text_of[document.origin] += document.text + "\n"
    assert "Object for wrapping/filling text." in text_of["textwrap.py"]
    assert "Hardcode the recognized whitespace characters" in text_of["textwrap.py"]  # a comment
    assert "Return the absolute value of the argument." in text_of["builtins"]
    assert "Assert statements are a convenient way" in text_of["topics/assert"]


def test_no_document_comes_twice_and_none_is_empty(docs: list[Document]) -> None:
    texts = [d.text for d in docs]
    assert len(set(texts)) == len(texts)
    assert all(text.strip() for text in texts)


def test_there_are_no_examples_licences_tests_or_code(docs: list[Document]) -> None:
    assert not any(">>>" in d.text for d in docs)
    assert not any("All rights reserved" in d.text for d in docs)
    assert not any("/test/" in d.origin or d.origin.startswith("test/") for d in docs)
    assert sum("\nimport " in d.text or "\n    return " in d.text for d in docs) < len(docs) / 100


def test_code_on_request_adds_the_source(docs: list[Document]) -> None:
    with_code = list(documents(code=True))
    assert sum(len(d.text) for d in with_code) > 3 * sum(len(d.text) for d in docs)
    assert any("class TextWrapper:" in d.text for d in with_code if d.origin == "textwrap.py")


READ_A_PART = """
import hashlib, sys, sysconfig
from pion.data.documents.python_docs import documents
sysconfig.get_path = lambda name: sys.argv[1]
print(hashlib.sha256(repr([(d.origin, d.text) for d in documents()]).encode()).hexdigest())
"""


def test_two_processes_read_the_same_documents_of_a_part_of_the_library(tmp_path: Path) -> None:
    """Reading all of it takes seconds of a core in each process."""
    whole = Path(sysconfig.get_path("stdlib"))
    for source in source_files()[::10]:
        (tmp_path / source.origin).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source.origin).symlink_to(whole / source.origin)
    program = [sys.executable, "-c", READ_A_PART, tmp_path]
    first, second = (run_to_end(program, check=True).stdout for _ in range(2))
    assert len(first.strip()) == 64
    assert first == second


@pytest.mark.soak
def test_another_process_reads_the_same_documents_in_the_same_order(docs: list[Document]) -> None:
    code = (
        "import hashlib\nfrom pion.data.documents.python_docs import documents\n"
        "print(hashlib.sha256(repr([(d.origin, d.text) for d in documents()]).encode())"
        ".hexdigest())"
    )
    here = hashlib.sha256(repr([(d.origin, d.text) for d in docs]).encode()).hexdigest()
    there = run_to_end([sys.executable, "-c", code], check=True)
    assert there.stdout.strip() == here


def test_the_held_out_share_is_by_file_and_grows_with_the_share(docs: list[Document]) -> None:
    origins = sorted({d.origin for d in docs})
    small = {o for o in origins if is_held_out(o, 0.05)}
    large = {o for o in origins if is_held_out(o, 0.2)}
    assert small < large
    assert 0.1 < len(large) / len(origins) < 0.3


def test_no_paragraph_of_a_held_out_file_is_in_a_training_file(docs: list[Document]) -> None:
    """Also not with another layout, case or number."""
    parts: dict[bool, set[str]] = {True: set(), False: set()}
    for document in docs:
        found = {letters_of(paragraph) for paragraph in document.text.split("\n\n")}
        parts[is_held_out(document.origin, 0.1)] |= found
    held_out = {part for part in parts[True] if len(part) >= RECOGNISED_LETTERS}
    assert len(held_out) > 100
    assert not held_out & parts[False]


def test_definitions_know_kind_and_signature() -> None:
    found = {f"{d.module}.{d.name}": d for d in definitions()}
    fill = found["textwrap.TextWrapper.fill"]
    assert (fill.kind, fill.signature) == ("method", "fill(text)")
    assert found["textwrap.dedent"].kind == "function"
    assert found["textwrap.TextWrapper"].kind == "class"
    assert found["builtins.str.join"].signature == "join(iterable, /)"
    assert found["pathlib.PurePath.name"].kind == "property"
