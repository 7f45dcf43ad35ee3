"""Refuse a task whose record at SkyPilot would show a secret.

SkyPilot keeps what a task is made of, and shows it in its records and on its dashboard. It hides
only the values under `secrets:`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pion.errors import BadInput
from pion.secret_names import names_secret
from pipeline.console.masking import (
    LEAST_CHARACTERS,
    holds_userinfo,
    known_secrets,
    refuse_endpoints,
    secret_in,
    texts_in,
    userinfo_refused,
)

_SECRETS = "secrets"
# `NAME=value` in a script, where the value is neither a variable nor a path.
_ASSIGNED = re.compile(r"""(?<![\w$])([A-Z][A-Z0-9_]*)=["']?[^\s"'$/~<]""")


def refuse_recorded_secrets(
    config: Mapping[str, Any], where: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Raise BadInput if a task shows a secret outside of `secrets:`. The message does not show it.

    `config` is the task's YAML, and `where` names it. A secret is a variable under `envs` whose
    name says so, a password in a URL, a value of the environment or of `secrets:`, and a token of
    a known form.
    """
    envs = config.get("envs")
    variables = envs if isinstance(envs, Mapping) else {}
    for name, value in variables.items():
        if value and names_secret(str(name)):
            raise BadInput(_move(where, f"envs.{name} is a secret", str(name)))
    refuse_endpoints({str(name): str(value) for name, value in variables.items()})
    written = {k: v for k, v in secrets_written(config).items() if len(v) >= LEAST_CHARACTERS}
    known = known_secrets(environment) | written
    for key, text in texts_in({k: v for k, v in config.items() if k != _SECRETS}):
        if holds_userinfo(text):
            raise userinfo_refused(f"{where}: {key}", text)
        if found := secret_in(text, known):
            raise BadInput(_move(where, f"{key} has {found}", "the variable"))
        for assigned in _ASSIGNED.finditer(text) if key in ("run", "setup") else ():
            if names_secret(assigned[1]):
                raise BadInput(_move(where, f"{key} has a value of {assigned[1]}", assigned[1]))


def secrets_written(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that a task's YAML gives its secrets, by name, however short."""
    return {key: text for key, text in texts_in(config.get(_SECRETS) or {}) if text}


def _move(where: str, what: str, variable: str) -> str:
    return (
        f"{where}: {what}, and SkyPilot shows it in its records. Nothing was rented. Put "
        f"{variable} under `secrets:` instead, without a value, and set it in the environment."
    )
