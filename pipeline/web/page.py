"""A page in one file: its HTML with its style and its scripts inside, and what it may do."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.-]+)">')
_SCRIPT = re.compile(r'<script src="([\w.-]+)"></script>')


@dataclass(frozen=True)
class Page:
    """A page that requests nothing but its own server's data.

    `csp` is its Content-Security-Policy: only the style and the scripts in `html` may run.
    """

    html: str
    csp: str


def read_page(folder: Path) -> Page:
    """Return the page whose parts are in `folder`: page.html, and the files that it names."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put(tag: str, name: str) -> str:
        text = (folder / name).read_text(encoding="utf-8")
        assert f"</{tag}" not in text, f"{name} would end its <{tag}>"
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = (folder / "page.html").read_text(encoding="utf-8")
    html = _STYLE.sub(lambda found: put("style", found[1]), html)
    html = _SCRIPT.sub(lambda found: put("script", found[1]), html)
    allowed = [
        "default-src 'none'",
        f"style-src {' '.join(hashes['style'])}",
        f"script-src {' '.join(hashes['script'])}",
        "connect-src 'self'",
        "img-src data:",  # the icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return Page(html, "; ".join(allowed))
