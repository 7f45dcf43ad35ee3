"""What the tests of the server share: a page in a browser."""

import pytest

from tests.support.chat_page import Page


@pytest.fixture
def page(browser, served, monkeypatch):
    """A page whose models never end an answer by themselves: untrained ones may do so at once."""
    for model in served.models:
        monkeypatch.setattr(model, "stop_ids", ())
    page = Page(browser, served.url).ready()
    yield page
    page.close()
