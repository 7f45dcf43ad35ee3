"""Under which terms a model may be used: what its page and its legal files say.

This is for the model card of what was trained from it. It is no legal advice: it repeats what is
written, and names the conditions of licences that ask for something on that card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pion.bounded_yaml import BoundedLoader
from pion.errors import BadInput
from pion.formats.weights import is_legal
from pion.untrusted import read_file

# Each line break may match in one place alone: with `\s`, a page of line breaks takes hours.
_FRONT_MATTER = re.compile(r"\A\s*---[ \t\r]*\n(.*?)\n---[ \t\r]*(?:\n|\Z)", re.DOTALL)
_LLAMA = re.compile(r"llama-?\d", re.IGNORECASE)
LONGEST = 200


@dataclass(frozen=True)
class Terms:
    """The terms of a model.

    Attributes:
        license: the identifier on its page, such as apache-2.0; None if the page has none.
        name: the name of a licence without an identifier (`license: other`).
        link: where that licence is.
        files: its legal files, by name.
    """

    license: str | None = None
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()

    @property
    def known(self) -> bool:
        """Whether anything says under which licence the model is."""
        return self.license is not None or bool(self.files)

    @property
    def front_matter(self) -> dict[str, str]:
        """The licence as fields of the YAML block that the Hub reads."""
        fields = {"license": self.license, "license_name": self.name, "license_link": self.link}
        return {name: value for name, value in fields.items() if value is not None}


def terms_of(folder: Path) -> Terms:
    """Return the terms of the model in `folder`. A page that can't be read says nothing."""
    try:
        page = front_matter(read_file(folder / "README.md").decode())
    except (OSError, ValueError, BadInput):
        page = {}
    legal = [path for path in sorted(folder.iterdir()) if path.is_file() and is_legal(path.name)]
    said = [_text(page.get(name)) for name in ("license", "license_name", "license_link")]
    return Terms(said[0], said[1], said[2], tuple(legal))


def conditions(terms: Terms, model_name: str) -> list[str]:
    """Return what a known licence asks of a model that was trained from this one, as sentences."""
    if not _LLAMA.search(" ".join(filter(None, (terms.license, terms.name)))):
        return []
    sentences = [
        "Built with Llama.",
        "Its licence asks for this line, for a copy of the licence and of its NOTICE, and for a "
        "name that begins with “Llama”.",
    ]
    if not model_name.lower().startswith("llama"):
        sentences.append(f"The name “{model_name}” does not begin with “Llama”.")
    return sentences


def front_matter(page: str) -> Mapping[str, Any]:
    """Return the YAML block at the top of a page, as the Hub reads it; {} if it can't be read."""
    match = _FRONT_MATTER.match(page)
    try:
        fields = yaml.load(match[1], Loader=BoundedLoader) if match else None  # noqa: S506
    except yaml.MarkedYAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(value: Any) -> str | None:
    """Return a field of a page that is a short line of text; None for anything else."""
    short = isinstance(value, str) and 0 < len(value) <= LONGEST
    return value if short and value.isprintable() else None
