"""Read the names of a model's special tokens from the files next to its tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import parse_object, read_file

# The files in which transformers stores the names. The second file decides, but transformers reads
# the second only if the first has no list of the tokens.
TOKENIZER_CONFIG = "tokenizer_config.json"
FILES = (TOKENIZER_CONFIG, "special_tokens_map.json")
# A name is a token's text, and no token of a real model is nearly as long.
_LONGEST_NAME = 256


def token_names(folder: str | Path) -> dict[str, str]:
    """Return the text of each special token by name: `bos_token`, `eos_token`, `pad_token`, ….

    transformers passes the same names to chat templates. Names without a value are left out.

    Raises:
        BadInput: a file is damaged, too large, or a name's value is no text.
    """
    names: dict[str, str] = {}
    for file in FILES:
        content = read_optional(Path(folder) / file)
        for key, value in content.items():
            if key.endswith("_token") and not key.startswith("add_") and value is not None:
                text = value.get("content") if isinstance(value, dict) else value
                if not isinstance(text, str) or len(text) > _LONGEST_NAME:
                    raise BadInput(
                        f"{Path(folder) / file}: key {shown(key)} must be the text of a token, at "
                        f"most {_LONGEST_NAME} characters, or an object with it under content; it "
                        f"is {shown(value)}"
                    )
                names[key] = text
        if "added_tokens_decoder" in content:
            break
    return names


def read_optional(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or {} if there is no such file. Raises BadInput."""
    try:
        return parse_object(read_file(path), str(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path}: can't read this file ({error.strerror or error})") from None
