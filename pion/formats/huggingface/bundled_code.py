"""A decoder as its own architecture of transformers: the folder has the code, as modelling files.

The modelling files are modeling_pion.py and the library's own files that it imports, so the maths
is written once. transformers runs them if the user passes trust_remote_code=True. Pion reads the
settings and the weights, and never runs a modelling file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.flat_copy import flat_copy
from pion.untrusted import parse_object, read_file

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "dict[str, Tensor]"

ARCHITECTURE, MODEL_TYPE = "PionForCausalLM", "pion"
# The field of config.json that has our settings, and the prefix of our names of tensors.
SETTINGS, PREFIX = "decoder_settings", "decoder."
AUTO_MAP = {
    "AutoConfig": "modeling_pion.PionConfig",
    "AutoModelForCausalLM": f"modeling_pion.{ARCHITECTURE}",
}
# The first words of each modelling file, by which an earlier export is recognized.
HEADER = "# A modelling file of Pion"
_LICENSE = f"{HEADER} (Apache-2.0), copied from the library with relative imports.\n"


def misfit(config: ModelConfig) -> str | None:
    """Return None: the modelling files compute every decoder."""
    return None


def to_pion(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict for the modelling files."""
    hf_config = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "auto_map": AUTO_MAP,
        SETTINGS: config.to_dict(),
    }
    return hf_config, {PREFIX + name: tensor for name, tensor in state.items()}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return our settings in the config of an export with modelling files.

    Raises BadInput for missing settings and for a setting that this version doesn't know.
    """
    settings = hf_config.get(SETTINGS)
    if not isinstance(settings, dict):
        raise BadInput(f"config.json has no {SETTINGS}, which has the settings of the model")
    return ModelConfig.from_dict(settings)


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors without their prefix. Raises BadInput for a tensor without it."""
    for name in hf_state:
        if not name.startswith(PREFIX):
            raise BadInput(f"unexpected tensor {name}: the names start with {PREFIX!r}")
    return {name.removeprefix(PREFIX): tensor for name, tensor in hf_state.items()}


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
        found = {str(path.relative_to(folder)): read_file(path) for path in folder.rglob("*.py")}
        config, tokenizer = (
            parse_object(read_file(folder / name), str(folder / name))
            for name in ("config.json", "tokenizer_config.json")
        )
    except (BadInput, OSError):
        return False
    if found != {name: text.encode() for name, text in modelling_files().items()}:
        return False
    return config.get("auto_map") == AUTO_MAP and "auto_map" not in tokenizer
