"""Count the code of `pion/` and `pipeline/`, to compare two commits: `python tools/count_code.py`.

A statement is one of Python's `ast`, without imports and docstrings. With `--by-folder`, each
folder has a row. `--lower` lowers the ceiling to what there is now.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("pion", "pipeline")
# What the code may grow to. Whoever makes the code smaller lowers the ceiling in the same commit.
CEILING = Path(__file__).parent / "ceiling.json"

Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring(node: ast.AST) -> ast.stmt | None:
    """Return the docstring of a module, class or function; None if it has none."""
    if isinstance(node, Documented) and node.body and isinstance(node.body[0], ast.Expr):
        value = node.body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return node.body[0]
    return None


def count(path: Path) -> Counter[str]:
    """Return the files, lines, statements and public docstrings of a module."""
    text = path.read_text(encoding="utf-8")
    found = Counter(files=1, lines=text.count("\n"))
    for node in ast.walk(ast.parse(text)):
        public = not str(getattr(node, "name", "")).startswith("_")
        if docstring(node) is not None:
            found["statements"] -= 1
            found["public_docstrings"] += public
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom):
            found["statements"] += 1
    return found


def sizes() -> dict[str, int]:
    """Return what tools/ceiling.json bounds."""
    modules = [count(path) for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")]
    code = sum(modules, Counter[str]())
    tests = (path.read_bytes().count(b"\n") for path in (REPOSITORY / "tests").rglob("*.py"))
    return {
        "statements": code["statements"],
        "files": code["files"],
        "test_lines": sum(tests),
        "modules_of_status": _imported("pipeline.commands.status"),
        "modules_of_launch": _imported("pipeline.rent.managed.launch"),
    }


def _imported(module: str) -> int:
    """Return how many of our modules a new process has imported once it has imported this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    line = [sys.executable, "-c", code]
    loaded = subprocess.run(
        line, capture_output=True, encoding="utf-8", check=True, cwd=REPOSITORY
    ).stdout
    return sum(name.partition(".")[0] in PACKAGES for name in loaded.split())


def main() -> None:
    """Print the counts of each package, or of each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-folder", action="store_true", help="a row for each folder")
    parser.add_argument(
        "--lower", action="store_true", help="write what is lower now into tools/ceiling.json"
    )
    args = parser.parse_args()
    if args.lower:
        return _lower()
    by_folder = args.by_folder
    rows: dict[str, Counter[str]] = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = str(path.parent.relative_to(REPOSITORY)) if by_folder else package
            rows[name] = rows.get(name, Counter()) + count(path)
    rows["sum"] = sum(rows.values(), Counter())
    names = ("files", "lines", "statements", "public_docstrings")
    print(f"{'':32}" + "".join(f"{name:>18}" for name in names))
    for row, counts in rows.items():
        print(f"{row:32}" + "".join(f"{counts[name]:18,}" for name in names))


def _lower() -> None:
    before, now = json.loads(CEILING.read_text("utf-8")), sizes()
    CEILING.write_text(
        json.dumps({name: min(before[name], now[name]) for name in before}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
