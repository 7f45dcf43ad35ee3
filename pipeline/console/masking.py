"""Keep secrets out of text that people see: values of variables, and what URLs hold.

Pion prints URLs, records them in stores and passes them to SkyPilot. So it refuses URLs with a user
or a password in them (`https://user:password@host`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pion.errors import BadInput
from pion.secret_names import SECRET_FORM, names_secret

# A scheme and what follows it: a URL alone, and a URL in a text. A scheme has a limit and begins a
# word, so that the time to search a text grows only with its length.
_SCHEME = r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{1,20}):/{1,2}(?!/)"
_WHOLE = re.compile(rf"{_SCHEME}(\S+)")
_URL = re.compile(rf"""{_SCHEME}([^\s"'<>|,;`]+)""")
# The authority (user, password, host, port) ends here.
_AUTHORITY_END = re.compile(r"[/?#\\]")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:@\[\]]*)(:\d*)?")
# In these schemes, a user name without a password is a token. In ssh://git@host it is only a name.
_TOKEN_SCHEMES = ("http", "https", "git+http", "git+https", "s3", "hf")

S3_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
HUB_TOKEN = "HF_TOKEN"
# The variables that name a service which Pion talks to. SkyPilot's record gets some of them.
_ENDPOINTS = re.compile(r"AWS_ENDPOINT_URL(_[A-Z0-9_]+)?|HF_ENDPOINT|WANDB_BASE_URL")


def is_url_with_userinfo(text: str) -> bool:
    """Return whether `text` as a whole is a URL with a user or a password in it."""
    match = _WHOLE.fullmatch(text.strip())
    return match is not None and _has_userinfo(match)


def holds_userinfo(text: str) -> bool:
    """Return whether any URL in `text` has a user or a password in it."""
    return any(_has_userinfo(match) for match in _URL.finditer(text))


def refuse_endpoints(environment: Mapping[str, str]) -> None:
    """Raise BadInput if a variable that names a service has a user or a password in it."""
    for name, value in environment.items():
        if _ENDPOINTS.fullmatch(name):
            refuse_endpoint(name, value)


def refuse_endpoint(where: str, url: str) -> None:
    """Raise BadInput if `url`, a service's address that may lack a scheme, has userinfo."""
    if is_url_with_userinfo(url if ":/" in url else f"http://{url}"):
        raise userinfo_refused(where, url)


def refuse_in_values(values: Any, where: str) -> None:
    """Raise BadInput if a text in nested mappings and lists is a URL with userinfo."""
    for path, text in texts_in(values):
        if is_url_with_userinfo(text):
            raise userinfo_refused(f"{where}: `{path}`", text)


def texts_in(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) for each text in nested mappings and lists."""
    if isinstance(values, str):
        yield path, values
        return
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        children = values.items()
    elif isinstance(values, Sequence) and not isinstance(values, bytes):
        children = enumerate(values)
    for key, value in children:
        yield from texts_in(value, f"{path}.{key}" if path else str(key))


def userinfo_refused(where: str, url: str) -> BadInput:
    """Return the error for a URL with userinfo. It names the variable to use, and not the URL."""
    return BadInput(
        f"{where} is a URL with a user name or a password before the @. Pion prints and records "
        "URLs, so a secret must not be in a URL. Nothing was started. Remove the part before the "
        f"@, and set {_instead(where, url)} in the environment."
    )


def _instead(where: str, url: str) -> str:
    """Return the variables that hold a secret for this service."""
    about = f"{where} {url.lower().partition('://')[0]}"
    if "AWS_" in about or about.endswith(" s3"):
        return S3_KEYS
    if "HF_" in about or about.endswith(" hf") or "huggingface" in url.lower():
        return HUB_TOKEN
    if "WANDB_" in about:
        return "WANDB_API_KEY"
    return f"{HUB_TOKEN} for the Hub, or {S3_KEYS} for S3,"


def _has_userinfo(match: re.Match[str]) -> bool:
    scheme, rest = match[1].lower(), match[2]
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    if scheme == "file" or "@" not in rest or _HOST_AND_PORT.fullmatch(authority):
        return False
    # A password with a slash ends the authority early: in "key:first-half" is no @.
    user, colon, password = (authority.rpartition("@")[0] or authority).partition(":")
    if (password or user).startswith("$"):  # the name of a shell variable
        return False
    return bool(colon) or scheme in _TOKEN_SCHEMES


def _hide(match: re.Match[str]) -> str:
    if not _has_userinfo(match):
        return match[0]
    return f"{match[1]}://<hidden>@{match[2].rpartition('@')[2]}"


# A shorter value is not looked for in text: it may be a common word.
LEAST_CHARACTERS = 12

# The text after this option is for a model, and is not printed as anything else.
_PROMPT = "--prompt"


def known_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets in the environment, by name."""
    return {
        name: value
        for name in environment  # another thread may change the environment meanwhile
        if names_secret(name) and len(value := environment.get(name, "")) >= LEAST_CHARACTERS
    }


def masked(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without the environment's secrets and without the userinfo of URLs."""
    text = _URL.sub(_hide, SECRET_FORM.sub("<token>", text))
    for name, value in sorted(known_secrets(environment).items(), key=lambda item: -len(item[1])):
        for spelling in {value, quote(value, safe="")}:
            text = text.replace(spelling, f"<{name}>")
    return text


def secret_in(text: str, known: Mapping[str, str]) -> str | None:
    """Return, in words, which of the `known` secrets is in `text`, or that a token or key is; None
    if none is."""
    for name, value in known.items():
        if value in text:
            return f"the value of {name}"
    return "a token or key" if SECRET_FORM.search(text) else None


def refuse_secret_arguments(arguments: Sequence[str]) -> None:
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
        if found := secret_in(argument, known_secrets()):
            raise BadInput(
                f"{what} has {found}. Every user of this machine can read the arguments of a "
                "process, and Pion records them. Nothing was started. Leave the secret in the "
                "environment, where Pion reads it."
            )
