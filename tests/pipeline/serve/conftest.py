"""What the tests of the server share: a page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chat_page import Page
from tests.support.served import Served


@pytest.fixture
def page(browser: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page whose models never end an answer by themselves: untrained ones may do so at once."""
    for model in served.models:
        monkeypatch.setattr(model, "stop_ids", ())
    page = Page(browser, served.url).ready()
    yield page
    page.close()
