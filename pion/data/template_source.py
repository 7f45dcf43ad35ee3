"""Find the chat template in the files of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pion.data.token_names import TOKENIZER_CONFIG, read_optional
from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import read_file

TEMPLATE_FILE = "chat_template.jinja"
# Real templates have up to 20 kB.
LARGEST_TEMPLATE = 1 << 20


def find_template(folder: str | Path) -> str | None:
    """Return the Jinja text of the model's chat template, or None if the model has none.

    As in transformers, chat_template.jinja comes first, then the key chat_template of
    tokenizer_config.json: a text, or a list of named ones, of which `default` counts.

    Raises:
        BadInput: a file is damaged or too large, or no template of a list is the default.
    """
    path = Path(folder) / TEMPLATE_FILE
    try:
        return read_file(path, LARGEST_TEMPLATE).decode()
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't read this chat template ({error})") from None
    path = Path(folder) / TOKENIZER_CONFIG
    value = _default(read_optional(path).get("chat_template"), path)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LARGEST_TEMPLATE:
        raise BadInput(
            f"{path}: key chat_template must be a text of at most {LARGEST_TEMPLATE:,} characters, "
            f"or a list of named ones; it is {shown(value)}"
        )
    return value


def _default(value: Any, path: Path) -> Any:
    if not isinstance(value, list):
        return value
    named = {
        item["name"]: item.get("template")
        for item in value
        if isinstance(item, dict) and isinstance(item.get("name"), str)
    }
    if "default" not in named:
        raise BadInput(
            f"{path}: key chat_template has no template named default, but "
            f"{shown(', '.join(named)) if named else 'none'}"
        )
    return named["default"]
