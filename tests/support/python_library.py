"""A part of the Python standard library: reading all of it takes seconds of a core."""

import sysconfig
from pathlib import Path

import pytest

from pion.data.documents import python_docs


def link_part(folder, every=10, also=()):
    """Make links in `folder` to every so many-th source file of the library, and to those named."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = sorted(
        path.relative_to(library)
        for path in library.rglob("*.py")
        if python_docs.NOT_LIBRARY.isdisjoint(path.relative_to(library).parts)
    )
    for source in {*sources[::every], *map(Path, also)}:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).symlink_to(library / source)


def read_only_a_part(monkeypatch, folder, every=10, also=()):
    """Take a part for the whole library in this test. What was read before is kept for others."""
    link_part(folder, every, also)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(folder))
        part = tuple(python_docs.source_files())
    assert len(part) > 20
    monkeypatch.setattr(python_docs, "source_files", lambda: part)
