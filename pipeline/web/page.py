"""Make one self-contained page of a folder: its page.html, with its styles and scripts inside.

The page's Content-Security-Policy allows these styles and scripts by their hashes and nothing else:
no other script, no request to anywhere but the server that sent the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

PAGE = "page.html"
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.-]+)">')
_SCRIPT = re.compile(r'<script src="([\w.-]+)"></script>')
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; style-src {styles}; script-src {scripts}"
)


@dataclass(frozen=True)
class Page:
    """A page as it is sent, and its Content-Security-Policy."""

    html: bytes
    policy: str

    def response(self) -> web.Response:
        """Return the answer that is the page."""
        from aiohttp import web

        return web.Response(
            body=self.html,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": self.policy},
        )


def read_page(folder: Path) -> Page:
    """Return the page of a folder, whose page.html names the files that are put into the page."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def insert(tag: str, match: re.Match[str]) -> str:
        text = (folder / match[1]).read_text("utf-8")
        if f"</{tag}" in text:
            raise ValueError(f"{folder / match[1]} has </{tag}, which would end it early")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = (folder / PAGE).read_text("utf-8")
    html = _STYLE.sub(lambda match: insert("style", match), html)
    html = _SCRIPT.sub(lambda match: insert("script", match), html)
    allowed = {f"{tag}s": " ".join(found) or "'none'" for tag, found in hashes.items()}
    return Page(html.encode(), _POLICY.format(**allowed))
