"""Modules are copied into a flat folder with relative imports, or the import is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pion.formats.huggingface.bundled_code import flat_copy

FILES = {
    "start.py": '''"""The first."""

from __future__ import annotations

import torch
from lib.deep.near import (
    distance,  # kept
    unit,
)

if torch:
    from lib.far import distance as other


def both():
    return distance() + other() + unit
''',
    "deep/near.py": "from lib.far import unit\n\n\ndef distance():\n    return unit\n",
    "far.py": "unit = 1\n\n\ndef distance():\n    from lib.start import torch\n    return 2\n",
    "unused.py": "import numpy\n",
}


def package(folder: Path, **changed: str) -> Path:
    for name, text in (FILES | {f"{name}.py": text for name, text in changed.items()}).items():
        path = folder / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return folder / "lib"


def test_the_copy_has_what_is_imported_and_works_as_a_flat_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = flat_copy(package(tmp_path), "lib.start")
    assert list(texts) == ["far.py", "near.py", "start.py"]
    assert texts["start.py"] == FILES["start.py"].replace("lib.deep.near", ".near").replace(
        "lib.far", ".far"
    )
    flat = tmp_path / "elsewhere" / "flat_copy_of_lib"
    flat.mkdir(parents=True)
    for name, text in texts.items():
        (flat / name).write_text(text)
    monkeypatch.syspath_prepend(str(flat.parent))
    from flat_copy_of_lib.start import both  # type: ignore[import-not-found]

    assert both() == 4
    assert "lib" not in sys.modules


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import lib.far\n", r"start\.py:1: write `from lib\.far import …`"),
        ("import lib\n", r"write `from lib import …`"),
        ("from lib import far\n", "lib is not a module with a file"),
        ("from lib.deep import near\n", r"start\.py:1: lib\.deep is not a module with a file"),
        ("from .far import unit\n", r"write `from lib\.module import …` in full"),
        ("from lib.nowhere import unit\n", r"lib\.nowhere is not a module with a file"),
        ("import numpy\n", "may not import numpy"),
        ("from torch import nn; from scipy.special import erf\n", "may not import scipy"),
        ("import importlib\n\nimportlib.import_module('lib.far')\n", r"start\.py:3: import_module"),
        ("far = __import__('lib.far')\n", "__import__"),
        ("from torch import nn; from lib.far import unit\n", "Start a line with each"),
        ("from lib.far \\\n    import unit\n", "Start a line with each"),
        ('"""Say\n\nfrom .future import it\n"""\n', r"would find the imports \['future'\]"),
    ],
)
def test_an_import_that_has_no_relative_form_is_named(
    text: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        flat_copy(package(tmp_path, start=text), "lib.start")


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would both be far\.py in a flat folder"):
        flat_copy(
            package(tmp_path, **{"deep/far": "", "deep/near": "from lib.deep.far import x\n"}),
            "lib.start",
        )
