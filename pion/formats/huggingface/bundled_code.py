"""A decoder as its own architecture of transformers: the folder has the code, as modelling files.

The modelling files are modeling_pion.py and the library's own files that it imports, so the maths
is written once. transformers copies the Python files of a model to its cache before it runs them,
and finds them by their relative imports. So `from pion.model.loss import Loss` becomes
`from .loss import Loss`. transformers runs the files if the user passes trust_remote_code=True.
Pion reads the settings and the weights, and never runs a modelling file.

So what pion/model imports is what every published model carries. A new import of another package
there breaks exports: tests/pion/formats/huggingface/test_bundled_code*.py tell.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architecture import Architecture, State
from pion.formats.model_tensors import Rows
from pion.untrusted import parse_object, read_file

# The field of config.json that has our settings, and the prefix of our names of tensors.
SETTINGS, PREFIX = "decoder_settings", "decoder."
AUTO_MAP = {
    "AutoConfig": "modeling_pion.PionConfig",
    "AutoModelForCausalLM": "modeling_pion.PionForCausalLM",
}
# The first words of each modelling file, by which an earlier export is recognized.
HEADER = "# A modelling file of Pion"
_LICENSE = f"{HEADER} (Apache-2.0), copied from the library with relative imports.\n"
# Packages that every user of the copy has.
OUTSIDE = frozenset({"torch", "transformers"})
# How transformers finds a relative import (dynamic_module_utils.py:get_relative_imports).
_FOUND_BY_TRANSFORMERS = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)


class BundledCode(Architecture):
    """The modelling files, which compute every decoder."""

    name, model_type = "PionForCausalLM", "pion"
    stock = False

    def lacks(self, config: ModelConfig) -> list[str]:
        """Return nothing."""
        return []

    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict for the modelling files."""
        hf_config = {
            "model_type": self.model_type,
            "architectures": [self.name],
            "auto_map": AUTO_MAP,
            SETTINGS: config.to_dict(),
        }
        return hf_config, {PREFIX + name: tensor for name, tensor in state.items()}

    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return our settings in the config of an export with modelling files.

        Raises BadInput for missing settings and for a setting that this version doesn't know.
        """
        settings = hf_config.get(SETTINGS)
        if not isinstance(settings, dict):
            raise BadInput(f"config.json has no {SETTINGS}, which has the settings of the model")
        return ModelConfig.from_dict(settings)

    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors without their prefix. Raises BadInput for a tensor without it."""
        for name in hf_state:
            if not name.startswith(PREFIX):
                raise BadInput(f"unexpected tensor {name}: the names start with {PREFIX!r}")
        return {name.removeprefix(PREFIX): tensor for name, tensor in hf_state.items()}

    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[Rows]]:
        """Return the name of each of `ours` with the prefix."""
        return {name: [Rows(PREFIX + name)] for name in ours}


@lru_cache(maxsize=1)
def modelling_files() -> Mapping[str, str]:
    """Return the text of each modelling file by its name."""
    package = Path(__file__).parents[2]
    copied = flat_copy(package, f"{package.name}.formats.huggingface.modeling_pion")
    return {name: _LICENSE + text for name, text in copied.items()}


def is_modelling_file(path: Path) -> bool:
    """Return whether Pion, of this version or another one, wrote the Python file."""
    if path.suffix != ".py" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER.encode()


def runs_only_our_code(folder: Path) -> bool:
    """Return whether transformers may be told to trust the code in the folder of an export.

    This is so if its Python files are exactly those that this version of Pion writes, and its
    settings name no other code.
    """
    try:
        files = {str(path.relative_to(folder)): read_file(path) for path in folder.rglob("*.py")}
        config, tokenizer = (
            parse_object(read_file(folder / name), str(folder / name))
            for name in ("config.json", "tokenizer_config.json")
        )
    except (BadInput, OSError):
        return False
    ours = {name: text.encode() for name, text in modelling_files().items()}
    return files == ours and config.get("auto_map") == AUTO_MAP and "auto_map" not in tokenizer


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
    imports = sorted(set(_FOUND_BY_TRANSFORMERS.findall(copied)))
    if imports != sorted({name.rpartition(".")[2] for name in imported}):
        raise ValueError(
            f"{path}: transformers would find the imports {imports} in the copy. Start a line with "
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
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
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
