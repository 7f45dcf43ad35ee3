"""lm-eval asks a tuned model with the ids of training, with the templates of all families."""

import json
from functools import partial

import pytest

from pion.data.chat.conversation import ROLES, Turn, chat_template, tokenize
from pion.data.chat.template import ChatTemplate
from pion.data.chat.template_source import write_template_date
from pion.data.records.layouts import read_conversation
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from tests.support.chat_templates import CHATML, LLAMA3, TEMPLATES
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.instruct_model import write_instruct_model
from tests.support.tokenizer_kinds import write_files

pytest.importorskip("lm_eval")

from pipeline.stages.lm_eval_model import CheckedModel

EXAMPLES = [
    {"role": "user", "content": "Question: 1 + 1 =\nAnswer:"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Question: 2 + 3 =\nAnswer:"},
    {"role": "assistant", "content": "5"},
]
ASKED = [*EXAMPLES, {"role": "user", "content": "Question: é + 漢 =\nAnswer:"}]
ANSWER = {"role": "assistant", "content": "seven"}
LAST_YEAR = "2025-03-04"
LLAMA_LIKE = "{% for m in messages %}<|im_start|>[{{ m.role }}] {{ m.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def quick_renderer(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)


def checked(model, learned=None):
    """Return lm-eval's model of a folder, which learned the chat format in `learned`."""
    tokenizer = (learned or model) / "tokenizer.json"
    return CheckedModel(str(model), tokenizer, {"device": "cpu", "batch_size": 1})


def sent(model, messages, **options):
    """Return the ids that lm-eval sends for messages."""
    ids, _ = model.tok_batch_encode([model.apply_chat_template(messages, **options)])
    return ids[0].tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_has_the_ids_of_training_with_the_template_of_each_family(name, tmp_path):
    folder = write_instruct_model(tmp_path, *TEMPLATES[name])
    write_template_date(folder, LAST_YEAR)  # as a run records it: today, the ids would differ
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    conversation = read_conversation({"messages": [*ASKED, ANSWER]}, "f:1")
    (examples,) = ChatTemplate(folder, tokenizer).tokenize_batch([conversation])
    trained = examples.tokenized[-1]

    ids = sent(checked(folder), ASKED)
    assert ids == trained.ids[: len(ids)].tolist()
    learned = tokenizer.decode(trained.ids[len(ids) :][trained.learned[len(ids) :]])
    assert learned.count("seven") == 1


# The second has a first token, which every document begins with.
@pytest.mark.parametrize("kind", ["smollm2", "llama3", "qwen", "deepseek"])
def test_a_chat_has_the_ids_of_training_in_pions_own_format(kind, tmp_path):
    tokenizer = Tokenizer.from_file(write_files(kind, tmp_path / "plain") / "tokenizer.json")
    folder = write_instruct_model(tmp_path / "model", kind, chat_template(tokenizer))
    turns = [Turn(ROLES[message["role"]], message["content"]) for message in [*ASKED, ANSWER]]
    trained = tokenize(tokenizer, turns).ids
    ids = sent(checked(folder), ASKED)
    assert ids == trained[: len(ids)].tolist()
    assert tokenizer.decode(trained[len(ids) :].tolist()) == "seven\n"


def test_the_begin_of_an_answer_that_a_task_gives_comes_after_the_learned_form(tmp_path):
    model = checked(write_instruct_model(tmp_path, "smollm2", CHATML))
    begun = [*ASKED, {"role": "assistant", "content": "The sum"}]
    ids = sent(model, begun, add_generation_prompt=False)
    asked = sent(model, ASKED)
    assert ids[: len(asked)] == asked
    assert model.tok_decode(ids[len(asked) :]) == "The sum"


# ---------------------------------------------------------------- another form


def refusal(model, learned, text=None):
    """Return the words with which a chat, or a plain text, in another form is refused."""
    asked = checked(model, learned)
    ask = partial(asked.apply_chat_template, ASKED)
    if text is not None:
        ask = partial(asked.loglikelihood, [Request(text, " 2")])
    with pytest.raises(BadInput) as error:
        ask()
    return str(error.value)


class Request:
    def __init__(self, *args):
        self.args = args


def test_another_template_than_the_learned_one_is_refused_with_both_beginnings(tmp_path):
    learned = write_files("smollm2", tmp_path / "learned", CHATML)
    model = write_instruct_model(tmp_path / "model", "smollm2", LLAMA_LIKE)
    words = refusal(model, learned)
    assert words.startswith("lm-eval would ask the model in another form than it learned.")
    assert "Its prompt (chat) begins with" in words
    assert r"('<|im_start|>[user]" in words
    assert r"('<|im_start|>system\n" in words
    assert "evaluate.lm_eval.chat" in words
    assert "no score was computed" in words


def test_a_difference_far_behind_more_ids_and_a_first_token_twice_are_refused(tmp_path):
    learned = write_files("smollm2", tmp_path / "learned", CHATML)
    prompts = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'")
    assert prompts != CHATML
    words = refusal(write_instruct_model(tmp_path / "bot", "smollm2", prompts), learned)
    assert "Its prompt (chat) continues after " in words
    assert "bot" in words
    assert "assistant" in words
    more = write_instruct_model(tmp_path / "more", "smollm2", CHATML + "{{ '!' }}")
    words = refusal(more, learned)
    assert "('" in words
    assert "the model learned" in words
    llama = write_files("llama3", tmp_path / "llama", LLAMA3)
    twice = write_instruct_model(tmp_path / "twice", "llama3", "{{ bos_token }}" + LLAMA3)
    assert refusal(twice, llama).count("<|begin_of_text|>") == 3


# A plain text gets its first token from the tokenizer's post-processor.
@pytest.mark.parametrize(("changed", "shown"), [({"post_processor": None}, 1), (None, 0)])
def test_a_first_token_that_is_missing_before_a_text_is_refused(changed, shown, tmp_path):
    learned = write_files("llama3", tmp_path / "learned")
    model = write_instruct_model(tmp_path / "model", "llama3", None)
    if changed is None:
        checked(model, learned).loglikelihood([Request("1 + 1 =", " 2")])
        return
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    words = refusal(model, learned, "1 + 1 =")
    assert "Its prompt (text) begins with" in words
    assert words.count("<|begin_of_text|>") == shown


def test_a_template_that_refuses_system_messages_is_not_asked_without_them(tmp_path):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    model = write_instruct_model(tmp_path, "smollm2", refuses + CHATML)
    with pytest.raises(BadInput, match="no system"):
        checked(model).apply_chat_template([{"role": "system", "content": "Add."}, *ASKED])
