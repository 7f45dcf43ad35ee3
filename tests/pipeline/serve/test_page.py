"""The page of `pion serve` in a real browser: what it does, and what it never does.

Answers are Markdown only if the user asks. It is made of text alone, and nothing in it is loaded.
"""

import json
import re

import pytest

from pion.generation.decoding import Decoding
from pipeline.models.find import find_model
from pipeline.web.address import API_KEY, Address
from tests.support.browser import needs_chromium
from tests.support.chat_page import KEY, PHONE, Page, slowly
from tests.support.contrast import CONTRAST
from tests.support.served import serving
from tests.support.waiting import wait_until

pytestmark = needs_chromium

NO_DATABASE = """
    indexedDB.open = () => { throw new DOMException("no", "SecurityError"); };
    Object.defineProperty(window, "sessionStorage", {
      get() { throw new DOMException("no", "SecurityError"); },
    });
"""
FULL = """
    const put = IDBObjectStore.prototype.put;
    IDBObjectStore.prototype.put = function (value) {
      if (this.name === "bodies") throw new DOMException("full", "QuotaExceededError");
      return put.call(this, value);
    };
"""


def test_an_answer_with_the_settings_of_the_page_streams_stops_and_is_continued(
    page, served, monkeypatch
):
    monkeypatch.setattr(Decoding, "step", slowly)
    sent = []
    page.tab.on("request", lambda request: sent.append(request.post_data or ""))
    settings = {"min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    page.set(max_tokens=230, **settings)
    page.tab.fill("#input", "What is a fox?")
    page.tab.click("#send")
    speed = re.compile(r"\d+ tokens, [\d.]+ tokens/s")
    wait_until(lambda: speed.search(page.tab.inner_text("main")), "tokens per second")
    asked = next(json.loads(body) for body in sent if "temperature" in body)
    assert settings.items() <= asked.items()
    page.tab.click("#stop")
    page.wait()
    (stopped,) = page.answers()
    assert "stopped" in page.tab.locator(".facts").inner_text()
    wait_until(lambda: served.models[0].engine.load() == (0, 0), "the slot is free")
    page.set(max_tokens=4)
    page.press("Continue")
    page.wait()
    (continued,) = page.answers()
    assert continued.startswith(stopped)


@pytest.mark.soak
def test_an_answer_is_edited_and_continued(page):
    page.set(max_tokens=6)
    page.send("What is a fox?")
    page.press("Edit answer")
    page.tab.fill(".editing textarea", "A fox <b>is</b>")
    page.tab.get_by_role("button", name="Save and continue").click()
    page.wait()
    (answer,) = page.answers()
    assert answer.startswith("A fox <b>is</b>")  # text, not markup
    assert page.tab.locator(".answer b").count() == 0


@pytest.mark.soak
def test_tokens_are_colored_and_another_one_can_be_taken(page):
    page.set(max_tokens=12)
    page.tab.click("#open-settings")
    page.tab.fill("#seed", "7")
    page.send("What is a fox?")
    assert page.tab.locator("#alternatives").is_hidden()
    page.tab.click("#colors")
    # Tokens that are only together a whole character have no alternatives, and a line break at the
    # end takes no place on the screen.
    token = page.tab.locator(".answer .token[data-alternatives='5']")
    token = token.filter(has_text=re.compile(r"\S")).last
    number = token.evaluate("(it) => [...it.parentElement.querySelectorAll('.token')].indexOf(it)")
    assert "color" in token.get_attribute("style")
    token.hover()
    choices = page.tab.locator("#alternatives button")
    assert choices.count() == 5
    percents = [float(text.split()[-2]) for text in choices.all_inner_texts()]
    assert percents == sorted(percents, reverse=True)
    before = page.tab.locator(".answer .token").all_text_contents()
    choices.nth(1).click()
    page.wait()
    assert page.tab.locator(".answer .token").all_text_contents()[:number] == before[:number]


@pytest.mark.soak
def test_two_models_answer_side_by_side_with_one_seed(page):
    page.set(max_tokens=5)
    page.tab.select_option("#model-b", "base")
    page.send("What is a fox?")
    assert page.tab.locator(".who").all_inner_texts() == ["chat", "base"]
    boxes = [page.tab.locator(".answer").nth(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    seeds = page.tab.evaluate("state.turns[0].answers.map((answer) => answer.seed)")
    assert seeds[0] == seeds[1]
    assert page.tab.locator("#notice").is_visible()  # the second one has no chat template
    page.tab.click("#to-text")
    assert page.tab.locator("#mode-text").get_attribute("aria-pressed") == "true"


@pytest.mark.soak
def test_a_text_is_continued_as_it_is(page):
    page.tab.select_option("#model-a", "base")
    page.tab.click("#mode-text")
    page.set(max_tokens=6, temperature=0)
    page.send("The quick brown")
    (whole,) = page.answers()
    assert whole.startswith("The quick brown")
    page.press("Continue")
    page.wait()
    assert page.answers()[0].startswith(whole)


@pytest.mark.soak
def test_the_system_prompt_is_sent_and_an_answer_is_copied(page):
    bodies = []
    page.tab.on("request", lambda request: bodies.append((request.url, request.post_data)))
    page.set(max_tokens=4)
    page.tab.click("#open-settings")
    page.tab.fill("#system", "Be brief.")
    page.send("What is a fox?")
    asked = next(json.loads(body) for url, body in bodies if url.endswith("/chat/completions"))
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.press("Copy")
    page.tab.get_by_role("button", name="Copied").wait_for()
    assert page.tab.evaluate("navigator.clipboard.readText()") == page.answers()[0]


@pytest.mark.soak
def test_a_conversation_is_exported_and_imported(page, tmp_path):
    page.set(max_tokens=5, temperature=0.35, top_k=7)
    page.tab.click("#open-settings")
    page.tab.fill("#seed", "7")
    page.tab.select_option("#model-a", "base")
    page.set(max_tokens=5, temperature=0.35, top_k=7)
    page.tab.select_option("#model-b", "chat")
    page.send("What is a fox?")
    before = page.answers()
    facts = page.tab.locator(".facts").all_inner_texts()
    with page.tab.expect_download() as download:
        page.tab.click("#save")
    file = tmp_path / "conversation.json"
    download.value.save_as(file)
    saved = json.loads(file.read_text())
    assert saved["turns"][0]["question"] == "What is a fox?"
    page.tab.click("#new-in-list")
    wait_until(lambda: page.answers() == [], "a new conversation")
    page.tab.set_input_files("#file", file)
    page.tab.wait_for_selector(".answer")
    assert page.answers() == before
    assert page.tab.locator(".facts").all_inner_texts() == facts
    with page.tab.expect_download() as download:
        page.tab.click("#save")
    download.value.save_as(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == saved
    controls = {"model-a": "base", "model-b": "chat", "temperature": "0.35", "seed": "7"}
    for name, value in controls.items():
        assert page.tab.input_value(f"#{name}") == value
    file.write_text(json.dumps(saved | {"models": ["gone"], "settings": {"top_k": "x"}}))
    page.tab.set_input_files("#file", file)
    page.tab.wait_for_selector("#banner:has-text('was written with gone, not served here')")
    assert page.tab.evaluate("state.settings.top_k") == 7
    (tmp_path / "wrong.json").write_text('{"x": 1}')
    page.tab.set_input_files("#file", tmp_path / "wrong.json")
    page.tab.wait_for_selector("#banner:not([hidden])")
    assert "wrong.json was not imported" in page.tab.locator("#banner").inner_text()


# Colors are those of the scheme, and widths those of the screen.
@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        pytest.param({}, "light", id="desk-light", marks=pytest.mark.soak),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param({}, "dark", id="desk-dark", marks=pytest.mark.soak),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.soak),
    ],
)
def test_every_text_can_be_read_and_nothing_is_wider_than_the_screen(
    settings, scheme, browser, served
):
    page = Page(browser, served.url, color_scheme=scheme, **settings).ready()
    page.set(max_tokens=20)
    page.tab.select_option("#model-b", "base")
    page.tab.click("#colors")
    page.send("What is a fox? " + "x" * 200)
    page.send("fox " * 300)  # refused: the error is a text too
    page.tab.click("#open-settings")
    contrast, text, count = page.tab.evaluate(CONTRAST)
    assert count > 30
    assert contrast >= 4.5, text
    width = page.tab.evaluate("document.documentElement.scrollWidth")
    assert width <= page.tab.viewport_size["width"]
    page.close()


@pytest.mark.soak
def test_the_settings_of_a_conversation_fit_on_a_phone(browser, served):
    page = Page(browser, served.url, **PHONE).ready()
    page.set(max_tokens=40)
    for number in range(3):
        page.send(f"What is a fox? {number}")
    page.tab.keyboard.press("Escape")
    button = page.tab.locator("#open-settings").bounding_box()
    assert 0 <= button["x"] <= 390 - button["width"]
    page.tab.tap("#open-settings")
    sheet = page.tab.locator("#settings").bounding_box()
    assert sheet["height"] > 400
    assert 0 <= sheet["y"] <= 844 - sheet["height"]
    page.tab.fill("#seed", "7")
    page.tab.tap("#close-settings")
    assert page.tab.locator("#settings").is_hidden()
    assert page.tab.evaluate("[state.seed, state.turns.length]") == [7, 3]
    page.close()


@pytest.mark.soak
def test_the_keyboard_alone_is_enough(page):
    page.set(max_tokens=12)
    keyboard = page.tab.keyboard
    assert page.tab.evaluate("document.activeElement.id") == "input"
    keyboard.type("What is")
    keyboard.press("Shift+Enter")
    keyboard.type("a fox?")
    keyboard.press("Enter")
    page.wait()
    assert page.tab.locator(".asked .text").text_content() == "What is\na fox?"
    reached = []
    for _ in range(25):
        keyboard.press("Shift+Tab")
        reached.append(page.tab.evaluate("document.activeElement.textContent.trim()"))
    for name in ("Regenerate", "Copy", "Edit", "Settings", "Token probabilities", "Chat"):
        assert name in reached
    page.tab.focus("#colors")
    keyboard.press("Enter")
    page.tab.locator(".answer .token").first.focus()
    keyboard.press("ArrowRight")
    assert page.tab.evaluate(
        "document.activeElement === document.querySelectorAll('.answer .token')[1]"
    )
    page.tab.locator(".answer .token[data-alternatives='5']").first.focus()
    assert page.tab.locator("#alternatives").is_visible()
    keyboard.press("ArrowDown")
    assert page.tab.evaluate("document.activeElement.closest('#alternatives') !== null")
    keyboard.press("Escape")
    assert page.tab.locator("#alternatives").is_hidden()


@pytest.mark.soak
def test_the_page_does_not_scroll_a_reader_away(page):
    page.set(max_tokens=120)
    page.tab.set_viewport_size({"width": 900, "height": 400})
    for question in ("What is a fox?", "And a dog?"):
        page.send(question)
    page.tab.evaluate("scroller().scrollTop = 0")
    page.send("And a header?")
    assert page.tab.evaluate("scroller().scrollTop") == 0
    page.tab.evaluate("scroller().scrollTop = 1e6")
    page.send("And a string?")
    assert page.tab.evaluate(
        "scroller().scrollHeight - scroller().scrollTop - scroller().clientHeight < 48"
    )


def test_a_server_that_dies_is_said_and_the_page_recovers(browser, run_folder):
    found = {"chat": find_model(f"{run_folder}/demo")}
    with serving(found, slots=2) as served:
        page = Page(browser, served.url).ready()
        page.set(max_tokens=5)
        page.send("What is a fox?")
        port = int(served.url.rsplit(":", 1)[1])
    page.send("And a dog?")
    assert "does not answer" in page.tab.locator("#banner").inner_text()
    assert "does not answer" in page.tab.locator(".turn").last.inner_text()
    assert len(page.answers()) == 2
    with serving(found, slots=2, address=Address(port=port)):
        page.tab.wait_for_selector("#banner", state="hidden")
        page.press("Try again")
        page.wait()
        assert page.tab.locator(".answer .error").count() == 0
    page.close()


def test_the_key_is_asked_for_and_is_in_no_url(browser, run_folder, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with serving({"chat": find_model(f"{run_folder}/demo")}, slots=2) as served:
        page = Page(browser, served.url)
        page.tab.wait_for_selector("#ask-key[open]")
        page.tab.fill("#key", "wrong")
        page.tab.keyboard.press("Enter")
        page.tab.wait_for_selector("#key-wrong:not([hidden])")
        page.tab.fill("#key", KEY)
        page.tab.keyboard.press("Enter")
        page.ready().set(max_tokens=3)
        page.send("What is a fox?")
        assert page.tab.locator(".answer .error").count() == 0
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", page.tab.url)
        page.close()


def titles(page):
    return page.tab.locator("#list .title").all_text_contents()


def switch(page, name, turn=0):
    page.tab.locator(".turn").nth(turn).get_by_role("button", name=name).click()


def test_a_reload_loses_nothing(page, served, monkeypatch):
    page.set(max_tokens=4, temperature=0.4)
    page.send("What is a fox?")
    page.press("Regenerate")
    page.wait()
    monkeypatch.setattr(Decoding, "step", slowly)
    page.set(max_tokens=150)
    page.tab.fill("#input", "And a dog?")
    page.tab.click("#send")
    wait_until(lambda: len(page.answers()[-1]) > 8, "an answer is being written")
    page.tab.fill("#input", "Half a dra")
    before = page.answers()
    page.tab.reload()
    page.tab.wait_for_selector(".turn >> nth=1")
    after = page.answers()
    assert after[0] == before[0]
    assert after[1].startswith(before[1])
    assert page.tab.input_value("#input") == "Half a dra"
    assert page.tab.input_value("#temperature") == "0.4"
    assert page.tab.locator(".versions").all_inner_texts() == ["‹\n2/2\n›"]
    assert "stopped" in page.tab.locator(".facts").last.inner_text()
    wait_until(lambda: served.models[0].engine.load() == (0, 0), "the slot is free")
    page.set(max_tokens=2)
    page.press("Continue")
    page.wait()
    assert page.answers()[1].startswith(after[1])


@pytest.mark.soak
def test_answers_and_edits_are_branches_that_can_be_undone(page, tmp_path):
    page.set(max_tokens=5)
    page.tab.click("#open-settings")
    page.tab.fill("#seed", "7")
    page.send("What is a fox?")
    page.send("And a dog?")
    first = page.answers()
    page.press("Regenerate", turn=0)
    page.wait()
    assert page.answers() == first[:1]  # the same seed; the later turn follows the earlier answer
    page.send("And a cat?")
    switch(page, "Previous version of the answer")
    assert page.answers() == first
    page.press("Edit", turn=0)
    page.tab.fill(".editing textarea", "ما هو الثعلب؟")
    page.tab.get_by_role("button", name="Ask again").click()
    page.wait()
    assert len(page.answers()) == 1
    question = page.tab.locator(".asked .text")
    assert question.evaluate("(it) => getComputedStyle(it).direction") == "rtl"
    page.tab.click("#undo")
    assert page.answers() == first
    with page.tab.expect_download() as download:
        page.tab.click("#save")
    download.value.save_as(tmp_path / "tree.json")
    page.tab.set_input_files("#file", tmp_path / "tree.json")
    wait_until(lambda: len(titles(page)) == 2, "the file is a second conversation")
    assert page.answers() == first
    with page.tab.expect_download() as download:
        page.tab.click("#save")
    download.value.save_as(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "tree.json").read_text()
    switch(page, "Next version of the answer")
    assert page.tab.locator(".asked .text").all_inner_texts() == ["What is a fox?", "And a cat?"]
    switch(page, "Next version of the question")
    assert page.tab.locator(".asked .text").all_inner_texts() == ["ما هو الثعلب؟"]
    old = {"format": "pion-conversation-1", "turns": [{"question": "Old", "answers": [{}]}] * 2}
    (tmp_path / "old.json").write_text(json.dumps(old))
    page.tab.set_input_files("#file", tmp_path / "old.json")
    page.tab.wait_for_selector(".asked:has-text('Old') >> nth=1")


@pytest.mark.soak
def test_conversations_are_searched_renamed_deleted_and_cleared(page):
    page.set(max_tokens=3)
    keyboard = page.tab.keyboard
    for question in ("What is a fox?", "<b>Bold</b> dogs"):
        page.tab.click("#new-in-list")
        page.send(question)
    wait_until(lambda: titles(page) == ["<b>Bold</b> dogs", "What is a fox?"], "the list")
    page.tab.fill("#search", "FOX")
    assert titles(page) == ["What is a fox?"]
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")
    keyboard.type("Red ones")
    keyboard.press("Enter")
    wait_until(lambda: titles(page) == ["Red ones"], "the new name")
    assert page.tab.evaluate("document.activeElement.ariaLabel") == "Rename Red ones"
    page.tab.fill("#search", "")
    page.tab.get_by_role("button", name="Delete <b>Bold</b> dogs").click()
    wait_until(lambda: titles(page) == ["Red ones"], "one is deleted")
    assert page.answers() == []
    keyboard.press("Control+z")
    wait_until(lambda: len(titles(page)) == 2 and page.answers(), "it is back, and open")
    assert page.violations() == []
    page.tab.click("#clear")
    keyboard.press("Enter")  # Cancel has the focus
    assert len(titles(page)) == 2
    page.tab.click("#clear")
    page.tab.get_by_role("button", name="Delete all").click()
    wait_until(lambda: not titles(page), "all are deleted")
    page.tab.reload()
    page.ready()
    assert (titles(page), page.answers()) == ([], [])


@pytest.mark.soak
@pytest.mark.parametrize(
    ("script", "reason"),
    [(NO_DATABASE, "it forbids this page"), (FULL, "its storage is full")],
)
def test_a_browser_that_keeps_nothing_is_said(script, reason, page):
    page.context.add_init_script(script)
    page.tab.reload()
    page.ready().set(max_tokens=3)
    page.send("What is a fox?")
    page.tab.wait_for_selector(f"#trouble:has-text('kept in this browser: {reason}')")
    before = page.answers()
    page.tab.click("#new-in-list")
    page.send("And a dog?")
    page.tab.get_by_role("button", name="What is a fox?").first.click()
    wait_until(lambda: page.answers() == before, "until the tab is closed, all is there")


@pytest.mark.soak
def test_two_tabs_keep_the_last_write_and_leave_alone_what_they_cannot_read(page):
    page.set(max_tokens=3)
    page.send("What is a fox?")
    other = page.context.new_page()
    other.goto(page.url)
    other.click("#list .open")
    other.wait_for_selector(".answer")
    page.send("And a dog?")
    other.wait_for_selector(".asked:has-text('And a dog?')")
    page.tab.evaluate(
        "putBack([[{ id: 'x', title: 'Newer', changed: 1, text: '' }, { format: 'later' }]])"
    )
    other.click("#list .open:has-text('Newer')")
    other.wait_for_selector("#banner:has-text('It is kept as it is.')")
    assert other.locator(".answer").count() == 2
    other.click("#list .icon[title='Delete What is a fox?']")
    wait_until(lambda: page.answers() == [], "what is deleted here is not kept there")
    assert titles(page) == ["Newer"]
    assert page.tab.evaluate("store.body('x')") == {"format": "later"}


@pytest.mark.soak
def test_the_oldest_turns_are_left_out_by_one_count_a_pause_and_settings_outlive_a_change_of_model(
    page,
):
    page.set(max_tokens=8, temperature=0.3)
    for number in range(4):
        page.send(f"fox dog the jumps over lazy quick brown {number} " * 5)
    wait_until(lambda: "left out" in page.tab.inner_text("#context"), "turns are left out")
    assert "of 256 tokens" in page.tab.inner_text("#context")
    assert page.tab.locator(".answer .error").count() == 0
    # The count after the last answer may still be due.
    page.tab.evaluate("clearTimeout(measuring); counting?.abort(); countTokens()")
    before = page.tab.inner_text("#context")
    asked = []
    page.tab.on("request", lambda request: asked.append(request.url))
    page.tab.fill("#input", "fox dog")
    wait_until(lambda: page.tab.inner_text("#context") != before, "the new count")
    assert asked == [f"{page.url}/v1/tokenize"]
    page.tab.select_option("#model-a", "base")
    assert page.tab.evaluate("[state.settings.temperature, state.settings.max_tokens]") == [0.3, 8]
    page.tab.click("#open-settings")
    page.tab.click("#defaults")
    assert page.tab.evaluate("state.settings.temperature") != 0.3


# ---------------------------------------------------------------- answers as Markdown

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
    script = """(text) => {
      const began = performance.now(), rendered = new Rendered();
      rendered.grow(text);
      document.getElementById("drawn")?.remove();
      rendered.root.id = "drawn";
      document.querySelector("main").prepend(rendered.root);
      rendered.root.getBoundingClientRect();
      return (performance.now() - began) / 1000;
    }"""
    return page.tab.evaluate(script, text)


@pytest.mark.soak
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


@pytest.mark.soak
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
        pytest.param(
            "\n".join("  " * n + "* x" for n in range(1_500)), id="lists", marks=pytest.mark.soak
        ),
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
        *(
            pytest.param(part, marks=pytest.mark.soak)
            for part in ("* x\n", "fox `", "![a](", "|x|\n", "```\n", "> x\n")
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
