"""Which names and texts are secrets. Logs, arguments and SkyPilot files are all judged by these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_WORDS = ("SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY")
_SECRET_ENDINGS = {"TOKEN", "KEY", "PAT"}
_ENDINGS_OF_MORE = {"PASS", "PWD"}  # the last word of several
_ABOUT_A_SECRET = {"FILE", "PATH", "DIR", "ID", "NAME"}
# Between two words of a name: HF_TOKEN, api-key, accessToken.
_BETWEEN = re.compile(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])")

# The forms of tokens and keys: the Hub, GitHub, GitLab, RunPod, AWS, Google, Slack, OpenAI and
# others (sk-), the header of a request, and a private key with all its lines.
SECRET_FORM = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|rpa_[A-Z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abeprs]-[\w-]{20,}"
    r"|sk-(?=[A-Za-z_-]*[0-9])[\w-]{20,})(?![\w-])"
    r"|(?i:\bauthorization[\"']?[ \t]*[:=][ \t]*[\"']?(?:bearer|basic|token)[ \t]+)[\w.~+/-]{8,}=*"
    r"|\b[Bb]earer[ \t]+[\w.~+/-]{20,}=*"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
)


def names_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret: HF_TOKEN, but not HF_TOKEN_PATH."""
    words = [word.upper() for word in _BETWEEN.split(name) if word]
    if not words or words[-1] in _ABOUT_A_SECRET:
        return False
    return (
        words[-1] in _SECRET_ENDINGS
        or (len(words) > 1 and words[-1] in _ENDINGS_OF_MORE)
        or any(word.endswith(_SECRET_WORDS) for word in words)
    )


def without_secret_names(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a child process that needs no secret."""
    return {name: value for name, value in environment.items() if not names_secret(name)}
