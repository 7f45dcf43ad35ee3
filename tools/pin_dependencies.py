"""Refresh the pinned versions of every direct and indirect dependency in pyproject.toml.

    uv run --no-project python tools/pin_dependencies.py

Resolves the newest versions that the lower bounds allow, and writes them to constraint-dependencies
under [tool.uv]. A lock file would do the same, but it names the registry that it was made from.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
BLOCK = re.compile(r"constraint-dependencies = \[\n(.*?)^\]\n", re.DOTALL | re.MULTILINE)


def resolve(pyproject: str) -> list[dict[str, Any]]:
    """Return the packages that uv chooses for `pyproject` without constraints."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(pyproject)
        (Path(folder) / "README.md").touch()
        for package in ("pion", "pipeline"):
            (Path(folder) / package).mkdir()
        subprocess.run(["uv", "lock", "--quiet"], cwd=folder, check=True)
        lock = tomllib.loads((Path(folder) / "uv.lock").read_text("utf-8"))
    return [package for package in lock["package"] if package["name"] != "pion-lm"]


def pins(packages: list[dict[str, Any]]) -> list[str]:
    """Return one requirement per package, with a marker if its version depends on the platform."""
    lines = []
    for package in packages:
        pin = f"{package['name']}=={package['version']}"
        markers = package.get("resolution-markers", [])
        if sum(other["name"] == package["name"] for other in packages) > 1 and markers:
            pin += " ; " + " or ".join(f"({marker})" for marker in markers)
        lines.append(pin)
    return sorted(lines)


def main() -> None:
    text = PYPROJECT.read_text("utf-8")
    lines = "".join(f'    "{pin}",\n' for pin in pins(resolve(BLOCK.sub("", text))))
    block = f"constraint-dependencies = [\n{lines}]\n"
    new = (
        BLOCK.sub(lambda _: block, text)
        if BLOCK.search(text)
        else text.replace("[tool.uv]\n", f"[tool.uv]\n{block}", 1)
    )
    PYPROJECT.write_text(new)
    print(f"pinned {lines.count(chr(10))} packages")


if __name__ == "__main__":
    main()
