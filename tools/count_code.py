"""Count the code of `pion/` and `pipeline/`, to compare two commits: `python tools/count_code.py`.

A statement is one of Python's `ast`, without imports and docstrings. With `--by-folder`, each
folder has a row.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("pion", "pipeline")

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


def main() -> None:
    """Print the counts of each package, or of each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-folder", action="store_true", help="a row for each folder")
    by_folder = parser.parse_args().by_folder
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


if __name__ == "__main__":
    main()
