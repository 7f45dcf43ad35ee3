"""Pion's own files: rentals (sky/), jobs, pages (docs/) and pins.

A checkout has them next to the code, and an installed package in the folder package_data.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from pathlib import Path

from pion import DISTRIBUTION
from pion.errors import BadInput

_PACKAGE = Path(__file__).parents[1]
IN_CHECKOUT = not (_PACKAGE / "package_data").is_dir()
OWN = _PACKAGE.parent if IN_CHECKOUT else _PACKAGE / "package_data"
# The folder of Pion's own files of a kind, and what errors call one of them.
KINDS = {"jobs": "job", "sky": "rental file"}


def own_names(kind: str) -> list[str]:
    """Return the names of Pion's own jobs, or of its rental files. bench.yaml is not one of them:
    it rents no machine for a job."""
    return sorted({path.stem for path in (OWN / kind).glob("*.yaml")} - {"bench"})


def file_meant(asked: str | Path, kind: str) -> Path:
    """Return the job file or the rental file that a person means: the path, NAME.yaml for NAME, or
    Pion's own file of this name, also where the person names it as in a checkout (jobs/NAME.yaml).

    Raises BadInput for a name that is no file and no name of Pion's.
    """
    path = Path(asked)
    name = path.name.removesuffix(".yaml")
    here = [path, path.with_name(f"{name}.yaml")] if path.name else [path]
    for file in (*here, *([Path(kind, f"{name}.yaml")] if len(path.parts) == 1 else [])):
        if os.path.exists(file) and not os.path.isdir(file):  # a Path raises for an odd name
            return file
    names = own_names(kind)
    if name in names and str(path.parent) in (".", kind):
        return OWN / kind / f"{name}.yaml"
    if path.suffix or len(path.parts) != 1 or os.path.exists(path):
        return path  # whoever reads it says what is wrong
    close = difflib.get_close_matches(name, names, 1, 0.5)
    raise BadInput(
        f"there is no file {path} or {path}.yaml here, and Pion has no {KINDS[kind]} of this name"
        + (f"; did you mean {close[0]}?" if close else "")
        + " (pion init lists them)"
    )


def is_own(path: Path) -> bool:
    """Return whether a file lies in one of Pion's own folders, such as jobs/."""
    return path.resolve().parent.parent == OWN.resolve()


def how_to_install(extra: str) -> str:
    """Return the command that installs what an extra of Pion needs next to this Pion."""
    if IN_CHECKOUT:
        return f"uv sync --extra {extra}"
    return f"uv pip install --python {shlex.quote(sys.executable)} '{DISTRIBUTION}[{extra}]'"
