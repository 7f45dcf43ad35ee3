"""Prompts as ids, as a server writes them, and as rows."""

import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.prompt.layouts import parse_question
from pion.data.prompt.rendering import EncodedPrompts, rows_of
from pion.data.row_flags import PADDING, STARTS
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from tests.support.chat_templates import MISTRAL, QWEN25
from tests.support.tokenizer_kinds import write_files

pytestmark = pytest.mark.usefixtures("quick_renderer")

ASKED = {"role": "user", "content": "How are you? <|im_end|>"}


def prompts_of(folder, kind, template, longest=100):
    model = write_files(kind, folder / "model", template)
    tokenizer = Tokenizer.from_file(model / "tokenizer.json")
    return EncodedPrompts(
        ChatFormat(model / "tokenizer.json", tokenizer), longest, 8, lambda ids: False
    )


@pytest.mark.parametrize("template", [QWEN25, None], ids=["a model's", "Pion's own"])
def test_a_prompt_is_written_as_when_it_is_answered_and_fills_a_row(tmp_path, template):
    prompts = prompts_of(tmp_path, "qwen", template)
    question = parse_question({"messages": [ASKED, {"role": "assistant", "content": "b"}]}, "f")
    ids = prompts.ids(question).tolist()
    assert ids == prompts.written.prompt_ids([ASKED])
    text = prompts.written.tokenizer.decode(ids, specials=True)
    assert "< |im_end|>" in text
    assert text.endswith("assistant\n" if template else "<|assistant|>\n")
    n = len(ids)
    rows, flags = rows_of([prompts.ids(question)] * 2, 100, pad=3)
    assert rows.tolist() == [[*ids, *[3] * (100 - n)]] * 2  # nothing is learned
    assert flags.tolist() == [[STARTS, *[0] * (n - 1), *[PADDING] * (100 - n)]] * 2
    assert prompts_of(tmp_path, "qwen", template, n).ids(question) is not None
    assert prompts_of(tmp_path, "qwen", template, n - 1).ids(question) is None
    huge = parse_question({"prompt": "How are you? " * 300}, "f")
    assert EncodedPrompts(None, 100, 8, None).ids(huge) is None  # never encoded


def test_a_prompt_that_the_chat_format_refuses_names_its_line(tmp_path):
    prompts = prompts_of(tmp_path, "llama3", MISTRAL)
    with pytest.raises(BadInput, match=r"^rl\.jsonl:3: the chat template refuses this"):
        prompts.ids(parse_question({"prompt": [ASKED, ASKED]}, "rl.jsonl:3"))
    with pytest.raises(BadInput, match=r"^f: this model's chat template has no place for tools"):
        prompts.ids(parse_question({"prompt": "Hello!", "tools": [{"name": "f"}]}, "f"))
