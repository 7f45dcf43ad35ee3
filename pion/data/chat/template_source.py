"""Find the chat template in the files of a model, and set what a job sets in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pion.data.chat.conversation import defused
from pion.data.tokens.token_names import TOKENIZER_CONFIG, read_optional
from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import read_file

TEMPLATE_FILE = "chat_template.jinja"
# Real templates have up to 20 kB.
LARGEST_TEMPLATE = 1 << 20
# Says which day a run's template writes as today's: {"date": "2026-11-22"}.
DATE_FILE = "template_date.json"
# The function with which templates ask for today's date.
ASKS_FOR_DATE = "strftime_now"
# Names that the renderer itself passes to a template.
RESERVED = (
    *("messages", "tools", "documents", "conversations", "chat_template", ASKS_FOR_DATE),
    *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
)


def find_template(folder: str | Path) -> str | None:
    """Return the Jinja text of the model's chat template, or None if the model has none.

    As in transformers, chat_template.jinja comes first, then the key chat_template of
    tokenizer_config.json: a text, or a list of named ones, of which `default` counts.

    Raises:
        BadInput: a file is damaged or too large, or no template of a list is the default.
    """
    return template_of(Path(folder) / TEMPLATE_FILE, Path(folder) / TOKENIZER_CONFIG)


def template_of(jinja: Path | None, path: Path | None) -> str | None:
    """Do as `find_template` for the two files, of which each may be missing."""
    try:
        if jinja is not None:
            return read_file(jinja, LARGEST_TEMPLATE).decode()
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{jinja}: can't read this chat template ({error})") from None
    value = None if path is None else _default(read_optional(path).get("chat_template"), path)
    if not isinstance(value, str | None) or len(value or "") > LARGEST_TEMPLATE:
        raise BadInput(
            f"{path}: key chat_template must be a text of at most {LARGEST_TEMPLATE:,} characters, "
            f"or a list of named ones; it is {shown(value)}"
        )
    return value


def with_settings(
    template: str, system: str | None, options: Mapping[str, Any], specials: Iterable[str]
) -> str:
    """Return a template in which conversations without a system message have `system`, and in which
    `options` are set, unless the caller sets them.

    So every program that renders the template uses the settings. `specials` are the texts of
    special tokens, which `system` can't write.

    Raises:
        BadInput: a template can't have one of the options.
    """
    before = []
    for name, value in options.items():
        if not name.isidentifier() or name in RESERVED:
            raise BadInput(f"template option {shown(name)}: a template can't have this option")
        text = json.dumps(value, ensure_ascii=False)
        before.append(f"{{% if {name} is not defined %}}{{% set {name} = {text} %}}{{% endif %}}")
    if system is not None:
        message = {"role": "system", "content": defused(system.strip(), specials)}
        message_json = json.dumps(message, ensure_ascii=False)
        roles = "messages | map(attribute='role') | list"
        before.append(
            f"{{% if 'system' not in ({roles}) and 'developer' not in ({roles}) %}}"
            f"{{% set messages = [{message_json}] + messages %}}{{% endif %}}"
        )
    # transformers drops the newline after a block, so the template's own text stays as it is.
    return "".join(f"{block}\n" for block in before) + template


def write_template_date(folder: Path, day: str) -> None:
    """Write which day the template in `folder` writes as today's. Raises OSError."""
    (folder / DATE_FILE).write_text(json.dumps({"date": day}) + "\n", encoding="utf-8")


def template_date(folder: str | Path) -> date:
    """Return the day that the template in `folder` writes as today's: the recorded one, or today.

    Raises:
        BadInput: the record is damaged.
    """
    path = Path(folder) / DATE_FILE
    recorded = read_optional(path).get("date")
    if recorded is None:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(recorded)
    except (TypeError, ValueError):
        raise BadInput(
            f"{path}: key date must be a day such as 2026-11-22: {recorded!r:.80}"
        ) from None


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
