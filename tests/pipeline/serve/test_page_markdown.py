"""Answers as Markdown: off by default, made of text alone, and nothing in it is ever loaded."""

import pytest

from tests.support.browser import needs_chromium
from tests.support.chat_page import Page
from tests.support.waiting import wait_until

pytestmark = needs_chromium

FOX = """# The *fox*

It is **quick**, `brown` and ***both***; snake_case_name is none of that.

* one
* two
  1. inside
* three

> a quote

| name | legs |
|:--|--:|
| fox | 4 |

```python
print("<b>fox</b>")
```
---
The end."""
HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)>
[click](javascript:alert(1)) ![fox](http://attacker.example/fox.png) <http://attacker.example/>
[ref]: http://attacker.example/ref
![data](data:text/html,<script>alert(1)</script>) http://attacker.example/auto
```html
<iframe src="http://attacker.example/"></iframe>"""


@pytest.fixture(scope="module")
def drawn_on(browser, served):
    """A page for texts that nobody asked for. Each is drawn instead of the one before."""
    page = Page(browser, served.url).ready()
    yield page
    page.close()


def draw(page, text):
    """Draw a text as an answer; return the seconds."""
    script = """(text) => {
      const began = performance.now(), rendered = new Rendered();
      rendered.grow(text);
      document.getElementById("drawn")?.remove();
      rendered.root.id = "drawn";
      document.querySelector("main").prepend(rendered.root);
      rendered.root.getBoundingClientRect();
      return (performance.now() - began) / 1000;
    }"""
    seconds = page.tab.evaluate(script, text)
    return seconds


def test_an_answer_is_text_until_the_user_asks_for_markdown(page):
    page.set(max_tokens=6)
    page.send("What is a fox?")
    assert page.tab.locator(".markdown").count() == 0
    written, tokens = page.answers(), page.tab.locator(".token").count()
    page.tab.click("#open-settings")
    page.tab.focus("#markdown")
    page.tab.keyboard.press("Space")
    assert page.tab.locator(".answer .markdown").count() == 1
    page.tab.reload()
    page.ready()
    assert page.tab.is_checked("#markdown")
    page.tab.wait_for_selector(".answer .markdown")
    page.tab.click("#open-settings")
    page.tab.uncheck("#markdown")
    assert page.answers() == written
    assert page.tab.locator(".token").count() == tokens


def test_markdown_has_blocks_and_code_that_can_be_copied(drawn_on):
    drawn_on.context.grant_permissions(["clipboard-read", "clipboard-write"])
    draw(drawn_on, FOX)
    drawn = drawn_on.tab.locator("#drawn")
    for selector, text in (
        ("h2.level1", "The fox"),
        ("h2 em", "fox"),
        ("strong", "quick"),
        ("p code", "brown"),
        ("ul > li:nth-child(2) ol > li", "inside"),
        ("blockquote p", "a quote"),
        ("td:nth-child(2)", "4"),
        ("pre code", 'print("<b>fox</b>")'),
        (".code .bar span", "python"),
    ):
        assert drawn.locator(selector).first.inner_text().strip() == text
    assert "snake_case_name" in drawn.inner_text()
    drawn.get_by_role("button", name="Copy").click()
    wait_until(
        lambda: drawn_on.tab.evaluate("navigator.clipboard.readText()") == 'print("<b>fox</b>")',
        "the code is copied",
    )


def test_nothing_in_markdown_is_loaded_or_can_be_clicked(drawn_on):
    """`Page` fails for each request to another server."""
    draw(drawn_on, HOSTILE)
    elements = drawn_on.tab.evaluate(
        "[...new Set([...document.querySelectorAll('#drawn *')].map((one) => one.tagName))]"
    )
    assert not {"A", "IMG", "SCRIPT", "IFRAME", "OBJECT", "LINK", "STYLE"} & {*elements}
    text = drawn_on.tab.inner_text("#drawn")
    for shown in (
        "<script>alert(1)</script>",
        "click (javascript:alert(1))",
        "fox (http://attacker.example/fox.png)",
        '<iframe src="http://attacker.example/"></iframe>',
    ):
        assert shown in text
    drawn_on.tab.wait_for_timeout(100)
    assert drawn_on.wrong == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("> " * 10_000 + "x", id="quotes"),
        pytest.param("\n".join("  " * n + "* x" for n in range(1_500)), id="lists"),
        pytest.param("[" * 100_000, id="brackets"),
    ],
)
def test_deep_text_is_drawn(text, drawn_on):
    draw(drawn_on, text)
    assert drawn_on.tab.inner_text("#drawn").strip()


@pytest.mark.parametrize(
    "part",
    [
        "**fox_ ",
        "* x\n",
        *(
            pytest.param(part, marks=pytest.mark.soak)
            for part in ("fox `", "![a](", "|x|\n", "```\n", "> x\n")
        ),
    ],
)
def test_a_megabyte_of_any_mark_is_parsed_without_loss(part, drawn_on):
    """If time grew with the square of the text, this would take hours."""
    script = """(text) => {
      const blocks = blocksOf(text.split("\\n"));
      for (const { text } of blocks) if (text) partsOf(text);
      return blocks.at(-1).to;
    }"""
    text = part * (1_000_000 // len(part))
    lines = text.rstrip("\n").count("\n") + 1
    assert drawn_on.tab.evaluate(script, text) in (lines, lines + 1)


def test_a_text_that_grows_is_drawn_as_the_whole(drawn_on):
    script = """([text, step]) => {
      const rendered = new Rendered(), whole = new Rendered();
      for (let end = step; end < text.length + step; end += step) rendered.grow(text.slice(0, end));
      whole.grow(text);
      return [rendered.root.innerHTML, whole.root.innerHTML];
    }"""
    for step in (1, 3, 50):
        grown, whole = drawn_on.tab.evaluate(script, [FOX + "\n\n" + HOSTILE, step])
        assert grown == whole


def test_the_settings_of_the_page_reach_the_server(page, served):
    asked = []
    page.tab.on(
        "request", lambda request: asked.append(request.post_data_json if request.post_data else {})
    )
    page.set(max_tokens=2, min_p=0.05, presence_penalty=0.5, frequency_penalty=-0.5)
    page.send("What is a fox?")
    body = next(each for each in asked if "temperature" in each)
    found = [body[name] for name in ("min_p", "presence_penalty", "frequency_penalty")]
    assert found == [0.05, 0.5, -0.5]
