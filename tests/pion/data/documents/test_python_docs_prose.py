"""Only the unwrapped prose of a docstring is kept."""

from pion.data.documents.python_docs import prose


def test_prose_unwraps_paragraphs_and_keeps_lists() -> None:
    docstring = "Do it.\n\nA paragraph that\nwas wrapped.\n\n- one thing\n- another thing"
    assert prose(docstring) == (
        "Do it.\n\nA paragraph that was wrapped.\n\n- one thing\n- another thing"
    )


def test_prose_drops_doctests_tables_and_markup() -> None:
    docstring = (
        "See :func:`os.path.join` and ``x``.\n\n>>> 1 + 1\n2\n\n"
        "=====  =====\n1 0 1  0 0 1\n=====  =====\n\nThe end."
    )
    assert prose(docstring) == "See os.path.join and x.\n\nThe end."
