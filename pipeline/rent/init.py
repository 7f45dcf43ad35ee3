"""`pion init`: put a copy of one of Pion's own jobs or rental files into this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import show
from pipeline.machine.own_files import KINDS, OWN, own_names
from pipeline.rent.own_code import BOOT, MOUNT, code_folder


def init(names: Sequence[str]) -> None:
    """Write NAME.yaml for each name; without a name, list what there is.

    Raises BadInput for a name that Pion does not have, and for a file that exists; nothing was
    written then.
    """
    if not names:
        for kind, label in KINDS.items():
            show(f"{label}s: {' '.join(own_names(kind))}")
        show("`pion init NAME` writes NAME.yaml, a copy to change, into this folder.")
        return
    texts: dict[Path, str] = {}
    for name in names:
        texts |= _copy_of(name)
    for path, text in texts.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == text.encode()):
            raise BadInput(f"{path} exists and is different. Rename it first. Nothing was written.")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        show(f"wrote {path}")


def _copy_of(name: str) -> dict[Path, str]:
    """Return the files to write for a name, with their texts: NAME.yaml, and what it names."""
    stem = name.removesuffix(".yaml")
    kind = next((kind for kind in KINDS if stem in own_names(kind)), None)
    if kind is None:
        raise BadInput(f"Pion has no job or rental file {stem}. `pion init` lists them.")
    folder = OWN / kind
    text = (folder / f"{stem}.yaml").read_text(encoding="utf-8")
    named = [path for path in folder.glob("*.json") if path.name in text]
    files = {Path(path.name): path.read_text(encoding="utf-8") for path in named}
    return {Path(f"{stem}.yaml"): _rental(text) if kind == "sky" else text, **files}


def _rental(text: str) -> str:
    """Return the text of a rental file for this folder. Outside of Pion's checkout, the file brings
    Pion to the machine."""
    if Path.cwd() == OWN.resolve():
        return text
    brought = (
        "# Pion itself. `pion launch` puts the Pion that is installed then in its place, and\n"
        "# `pion init` writes this line again for a bare `sky launch`.\n"
        f"file_mounts: {{{MOUNT}: {code_folder()}}}\n"
    )
    text = text.replace("workdir: .\n", f"workdir: .\n\n{brought}", 1)
    return text.replace(f"bash {BOOT}", f"bash {MOUNT}/{BOOT}").replace(" sky/", " ")
