"""Copy a module and all modules that it imports into one folder, with their imports made relative.

transformers copies the Python files of a model to its cache before it runs them. It finds the files
by their relative imports, so `from pion.model.norm_and_projection import RMSNorm` must become
`from .norm import RMSNorm`.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

# Packages that every user of the copy has.
OUTSIDE = frozenset({"torch", "transformers"})
# How transformers finds a relative import (dynamic_module_utils.py:get_relative_imports).
_FOUND_BY_TRANSFORMERS = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)


def flat_copy(package: Path, module: str) -> dict[str, str]:
    """Return the text of each file by its name, for `module` and all that it imports.

    `package` is the package's folder, and `module` a full name such as `pion.model.decoder`. Raises
    ValueError for two modules of one name, an import of a package that users may lack, and an
    import that can't be made relative.
    """
    texts: dict[str, str] = {}
    homes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        name = current.rpartition(".")[2]
        if homes.setdefault(name, current) != current:
            raise ValueError(
                f"{current} and {homes[name]} would both be {name}.py in a flat folder: rename one"
            )
        if f"{name}.py" not in texts:
            texts[f"{name}.py"], imported = _made_relative(package, current)
            waiting += imported
    return dict(sorted(texts.items()))


def _made_relative(package: Path, module: str) -> tuple[str, list[str]]:
    """Return the text of a module with relative imports, and the modules that it imports."""
    path = _file(package, module)
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            name = _imported_from(node, package, f"{path}:{node.lineno}")
            if name is not None:
                line = lines[node.lineno - 1]
                relative = f"from .{name.rpartition('.')[2]} import "
                lines[node.lineno - 1] = line.replace(f"from {name} import ", relative)
                imported.append(name)
    copied = "".join(lines)
    found = sorted(set(_FOUND_BY_TRANSFORMERS.findall(copied)))
    if found != sorted({name.rpartition(".")[2] for name in imported}):
        raise ValueError(
            f"{path}: transformers would find the imports {found} in the copy. Start a line with "
            f"each `from {package.name}.…` import, and no line of a text with `from .`"
        )
    return copied, imported


def _imported_from(
    node: ast.Import | ast.ImportFrom | ast.Call, package: Path, where: str
) -> str | None:
    """Return the module of `package` that a statement imports from; None if it imports from none.

    Raises ValueError for an import that has no relative form here.
    """
    if isinstance(node, ast.Call):
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else None
        called = function.id if isinstance(function, ast.Name) else called
        if called in ("import_module", "__import__"):
            raise ValueError(f"{where}: {called}() can't be followed into a copy")
        return None
    if isinstance(node, ast.ImportFrom) and node.level:
        raise ValueError(f"{where}: write `from {package.name}.module import …` in full")
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
    for name in names:
        root = str(name).partition(".")[0]
        if root == package.name and isinstance(node, ast.ImportFrom):
            _file(package, str(name), where)
            return str(name)
        if root == package.name:
            raise ValueError(f"{where}: write `from {name} import …`, which has a relative form")
        if root not in OUTSIDE and root not in sys.stdlib_module_names:
            raise ValueError(
                f"{where}: a model's files may not import {root}: users of transformers may not "
                "have it"
            )
    return None


def _file(package: Path, module: str, where: str = "") -> Path:
    """Return the file of a module. Raises ValueError if there is none, as for a package."""
    path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        raise ValueError(f"{where or package}: {module} is not a module with a file: {path}")
    return path
