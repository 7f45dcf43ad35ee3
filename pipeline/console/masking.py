"""Keep the values of variables that hold secrets out of text that people see."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pion.errors import BadInput
from pion.secret_names import names_secret
from pipeline.console.userinfo import holds_userinfo, userinfo_refused, without_userinfo

# A shorter value is not looked for in text: it may be a common word.
LEAST_CHARACTERS = 12

# Tokens of the Hub, of GitHub and of RunPod.
_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|rpa_[A-Z0-9]{30,})\b")
# The text after this option is for a model, and is not printed as anything else.
_PROMPT = "--prompt"


def known_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets in the environment, by name."""
    return {
        name: value
        for name, value in environment.items()
        if names_secret(name) and len(value) >= LEAST_CHARACTERS
    }


def masked(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without the environment's secrets and without the userinfo of URLs."""
    text = without_userinfo(_TOKEN.sub("<token>", text))
    known = known_secrets(environment)
    for name, value in sorted(known.items(), key=lambda item: -len(item[1])):
        for spelling in {value, quote(value, safe="")}:
            text = text.replace(spelling, f"<{name}>")
    return text


def secret_in(text: str, known: Mapping[str, str]) -> str | None:
    """Return, in words, which of the `known` secrets or which token is in `text`; None if none."""
    for name, value in known.items():
        if value in text:
            return f"the value of {name}"
    return "a token" if _TOKEN.search(text) else None


def refuse_secret_arguments(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> None:
    """Raise BadInput if an argument of the command line holds a secret or a NUL character.

    Every user of the machine can read the arguments of a process.
    """
    for before, argument in zip(("", *arguments), arguments):
        if before == _PROMPT or argument.startswith(f"{_PROMPT}="):
            continue
        key, equals, _ = argument.partition("=")
        what = f"the argument {key if equals else ''}".strip()
        if "\0" in argument:
            raise BadInput(f"{what} has a NUL character, which no name can have")
        if holds_userinfo(argument):
            raise userinfo_refused(what, argument.removeprefix(f"{key}=" if equals else ""))
        if found := secret_in(argument, known_secrets(environment)):
            raise BadInput(
                f"{what} has {found}. Every user of this machine can read the arguments of a "
                "process, and Pion records them. Nothing was started. Leave the secret in the "
                "environment, where Pion reads it."
            )
