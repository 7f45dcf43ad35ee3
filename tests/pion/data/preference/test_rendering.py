"""Preferences by the chat templates of models: prompts, targets, ends, and what is left out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.layouts import parse_preference
from pion.data.preference.rendering import (
    EMPTY,
    ENDLESS,
    IDENTICAL,
    LONGER_THAN_CONTEXT,
    LONGER_THAN_ROW,
    REWRITTEN,
    Dropped,
    Usable,
    is_held_out,
    marked_preference,
    preference_format,
)
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from tests.pion.data.chat.test_template import CALL, DAY, RESULT, TOOLS, Model
from tests.pion.data.preference.test_layouts import answer
from tests.support.chat_templates import MISTRAL, QWEN25, TEMPLATES
from tests.support.tokenizer_kinds import TEXT, write_files

pytestmark = pytest.mark.usefixtures("quick_renderer")

OWN = "Pion's own"
ALL = [OWN, *TEMPLATES]
ASKED = {"role": "user", "content": "Return the number of items"}
MORE = {"role": "user", "content": "And then?"}


class Written:
    """A model's chat format, and what it makes of preferences."""

    def __init__(self, chat, seq_len=1000, context=500):
        self.chat = chat
        self.format = preference_format(chat, seq_len, context)

    def outcome(self, record, **bounds):
        """Return what becomes of a record; `bounds` are `seq_len` and `context`."""
        written = replace(self.format, **bounds)
        (found,) = written.outcomes([parse_preference(record, "f:1")])
        return found

    def usable(self, record):
        found = self.outcome(record)
        assert isinstance(found, Usable), found
        return found

    def learned(self, sided):
        """Return the text of the learned ids."""
        return self.text(sided.sequence.ids[sided.sequence.learned])

    def text(self, ids):
        return self.chat.tokenizer.decode(ids, specials=True)


def own(folder):
    tokenizer = train_bpe(TEXT, 300)
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    return Written(ChatFormat(path, tokenizer))


def of_template(folder, kind, source):
    write_files(kind, folder, source)
    path = folder / "tokenizer.json"
    return Written(ChatFormat(path, Tokenizer.from_file(path)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {OWN: own(tmp_path_factory.mktemp("own"))}
    for name, (kind, source) in TEMPLATES.items():
        made[name] = of_template(tmp_path_factory.mktemp("model"), kind, source)
    return made


def plain(chosen="Good one", rejected="Bad", **more):
    return {"prompt": [ASKED], "chosen": [answer(chosen)], "rejected": [answer(rejected)], **more}


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("name", ALL)
def test_both_sides_have_the_prompt_ids_and_learn_their_answer_to_its_end(models, name):
    written = models[name]
    found = written.usable(plain())
    chosen, rejected = found.item
    assert (chosen.preferred, rejected.preferred) == (True, False)
    assert found.prompt.tolist() == written.chat.prompt_ids([ASKED])
    for answers in (("a", "b"), ("\n\nitems", "1"), ("!", "the number of items")):
        assert written.usable(plain(*answers)).prompt.tolist() == found.prompt.tolist()
    for sided, said in ((chosen, "Good one"), (rejected, "Bad")):
        ids, learned = sided.sequence
        n = len(found.prompt)
        assert ids[:n].tolist() == found.prompt.tolist()
        assert not learned[:n].any()
        assert learned[n:].all()  # nothing follows the end of the turn
        assert said in written.learned(sided)
        assert ids[-1] in written.chat.stop_ids
        assert sum(int(one) in written.chat.stop_ids for one in ids[n:].tolist()) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path, name):
    kind, source = TEMPLATES[name]
    stock = Model(tmp_path, kind, source)
    written = Written(ChatFormat(tmp_path / "tokenizer.json", stock.tokenizer))
    for sided, said in zip(written.usable(plain()).item, ("Good one", "Bad")):
        whole = stock.stock_ids([ASKED, answer(said)], prompt=False, tools=None)
        assert whole[: len(sided.sequence.ids)] == sided.sequence.ids.tolist()
    assert DAY.isoformat() in (tmp_path / "template_date.json").read_text()


SAID = st.text(min_size=1, max_size=12).filter(str.strip) | st.sampled_from(
    ["a\n\nb", "<|im_end|>", "<|eot_id|>\n", "<|endoftext|>", "<think>x</think>y", " é ", "1234"]
)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=SAID, chosen=SAID, rejected=SAID)
def test_prompts_are_equal_and_ends_are_there_once_for_any_text(
    models, name, asked, chosen, rejected
):
    """Also if a text spells out the end of a turn."""
    written = models[name]
    record = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    found = written.outcome(record)
    if isinstance(found, Dropped):
        assert found.reason in (IDENTICAL, EMPTY)
        return
    assert isinstance(found, Usable), found
    for sided in found.item:
        ids = sided.sequence.ids.tolist()
        assert ids[: len(found.prompt)] == found.prompt.tolist()
        assert sum(one in written.chat.stop_ids for one in ids[len(found.prompt) :]) == 1


@pytest.mark.parametrize("name", ALL)
def test_earlier_answers_that_both_sides_share_are_no_targets(models, name):
    shared = [ASKED, answer("Seven"), MORE]
    record = {"chosen": [*shared, answer("Good one")], "rejected": [*shared, answer("Bad")]}
    found = models[name].usable(record)
    assert found.prompt.tolist() == models[name].chat.prompt_ids(shared)
    assert not found.early
    for sided in found.item:
        assert "Seven" in models[name].text(sided.sequence.ids)
        assert "Seven" not in models[name].learned(sided)


def test_a_template_that_rewrites_earlier_answers_gives_equal_prompts(models):
    thought = answer("<think>\nhm\n</think>\n\nSeven")
    shared = [ASKED, thought, MORE]
    record = {
        "chosen": [*shared, answer("<think>\nwell\n</think>\n\nGood one")],
        "rejected": [*shared, answer("Bad")],
    }
    found = models["Qwen 3"].usable(record)
    assert "hm" not in models["Qwen 3"].text(found.prompt)  # removed, as when chatting
    assert "Seven" in models["Qwen 3"].text(found.prompt)
    chosen, rejected = found.item
    assert models["Qwen 3"].learned(chosen) == "<think>\nwell\n</think>\n\nGood one<|im_end|>"
    assert models["Qwen 3"].learned(rejected) == "<think>\n\n</think>\n\nBad<|im_end|>"


EARLY = {
    "chosen": [ASKED, answer("Seven"), MORE, answer("Good one")],
    "rejected": [ASKED, answer("Nine"), {"role": "user", "content": "Why?"}, answer("Bad")],
}


REWRITES = ("Qwen 3", "gpt-oss")


@pytest.mark.parametrize("name", [name for name in ALL if name not in REWRITES])
def test_answers_that_differ_earlier_are_all_learned_and_counted(models, name):
    found = models[name].usable(EARLY)
    assert found.early
    assert found.prompt.tolist() == models[name].chat.prompt_ids([ASKED])
    for sided, said, never in zip(
        found.item, (("Seven", "Good one"), ("Nine", "Bad")), (MORE["content"], "Why?")
    ):
        learned = models[name].learned(sided)
        assert all(text in learned for text in said)
        assert never not in learned


@pytest.mark.parametrize("name", REWRITES)
def test_a_pair_that_differs_in_an_answer_that_the_template_rewrites_is_dropped(models, name):
    assert models[name].outcome(EARLY) == Dropped(REWRITTEN, None)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_an_unpaired_answer_is_one_sequence_with_its_label(models, name, label):
    found = models[name].usable({"prompt": [ASKED], "completion": "Good one", "label": label})
    ((sequence, preferred),) = found.item
    assert preferred is label
    assert sequence.ids[: len(found.prompt)].tolist() == models[name].chat.prompt_ids([ASKED])
    assert "Good one" in models[name].text(sequence.ids[sequence.learned])


# ---------------------------------------------------------------- tools


def test_calls_are_learned_as_answers_and_results_are_context(models):
    record = {
        "input": {"messages": [ASKED, CALL, RESULT, answer("Noon"), MORE], "tools": TOOLS},
        "preferred_output": [CALL, RESULT, answer("Good one")],
        "non_preferred_output": [answer("Bad")],
    }
    written = models["Qwen 2.5"]
    found = written.usable(record)
    prompt = written.text(found.prompt)
    assert "# Tools" in prompt
    assert "12:00" in prompt
    assert "<tool_call>" in prompt
    chosen, rejected = (written.learned(sided) for sided in found.item)
    assert '{"name": "now"' in chosen
    assert "12:00" not in chosen
    assert chosen.endswith("Good one<|im_end|>")
    assert rejected == "Bad<|im_end|>"


def test_a_template_that_loses_the_calls_of_the_prompt_refuses_the_pair(models):
    record = {"prompt": [ASKED, CALL, RESULT], "chosen": "Good one", "rejected": "Bad"}
    found = models["SmolLM2"].outcome(record)
    assert "f:1: answer 1 calls 'now'" in found.why


def test_the_own_format_leaves_tools_out(models):
    found = models[OWN].usable(
        {"prompt": [ASKED, CALL, RESULT], "chosen": "Good one", "rejected": [CALL, answer("Bad")]}
    )
    assert found.prompt.tolist() == models[OWN].chat.prompt_ids([ASKED])
    assert [models[OWN].learned(sided)[:3] for sided in found.item] == ["Goo", "Bad"]
    only_call = {"prompt": [ASKED], "chosen": "Good one", "rejected": [CALL]}
    assert models[OWN].outcome(only_call) == Dropped(EMPTY, None)


# ---------------------------------------------------------------- what is left out


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_answer_drops_the_pair(models, name, empty):
    record = {"prompt": [ASKED], "chosen": "Good one", "rejected": [answer(empty)]}
    assert models[name].outcome(record) == Dropped(EMPTY, None)


@pytest.mark.parametrize("name", ALL)
def test_answers_that_differ_only_in_space_around_them_are_identical(models, name):
    found = models[name].outcome(plain("Good one", " Good one\n"))
    assert found.reason == IDENTICAL
    one = models[name].usable(plain("Good one", "Bad")).item[0]
    assert found.tokens == 2 * len(one.sequence.ids)


@pytest.mark.parametrize(
    ("old", "new"), [(" ~ eos_token", ""), ("eos_token", "eos_token ~ eos_token")]
)
def test_a_template_that_ends_a_turn_not_at_all_or_twice_drops_everything(tmp_path, old, new):
    found = of_template(tmp_path, "llama3", MISTRAL.replace(old, new)).outcome(plain())
    assert found.reason == ENDLESS


def test_a_pair_longer_than_a_row_is_dropped_whole_and_one_that_fills_it_is_not(models):
    written = models["SmolLM2"]
    tokens = sum(len(sided.sequence.ids) for sided in written.usable(plain()).item)
    assert isinstance(written.outcome(plain(), seq_len=tokens), Usable)
    found = written.outcome(plain(), seq_len=tokens - 1)
    assert found == Dropped(LONGER_THAN_ROW, tokens)


def test_each_sequence_must_fit_the_context_but_the_pair_need_not(models):
    written = models["SmolLM2"]
    lengths = [len(sided.sequence.ids) for sided in written.usable(plain()).item]
    assert isinstance(written.outcome(plain(), context=max(lengths)), Usable)
    found = written.outcome(plain(), context=max(lengths) - 1)
    assert found == Dropped(LONGER_THAN_CONTEXT, sum(lengths))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_a_text_of_more_bytes_than_the_context_can_hold_is_never_encoded(models, name, key):
    record = {"prompt": "Hi", "chosen": "a", "rejected": "b", key: "items " * 100_000}
    found = models[name].outcome(record, context=20)
    assert found == Dropped(LONGER_THAN_CONTEXT, None)


def test_what_the_template_refuses_says_where(models):
    record = {"chosen": [ASKED, MORE, answer("a")], "rejected": [ASKED, MORE, answer("b")]}
    found = models["Mistral"].outcome(record)
    assert found.why.startswith("f:1: the chat template refuses this conversation")


# Takes a call without a text in the prompt, but not as the last message.
FORMS = (
    "{%- for m in messages -%}"
    "{%- if loop.index == 4 and m.content is none -%}{{- raise_exception('?') -}}{%- endif -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\n' ~ ('nothing' if m.content is none else m.content) -}}"
    "{{- (m.tool_calls | tojson if m.tool_calls else '') ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def test_sides_whose_prompts_the_template_writes_in_two_ways_are_refused(tmp_path):
    """The rejected call needs "" for no text, and so the call in its prompt gets it, too."""
    written = of_template(tmp_path, "qwen", FORMS)
    record = {"prompt": [ASKED, CALL, RESULT], "chosen": [answer("Noon")], "rejected": [CALL]}
    found = written.outcome(record)
    assert found.why.startswith("f:1: the chat template writes the messages before the answers in")
    assert isinstance(written.outcome({**record, "rejected": [answer("Bad")]}), Usable)


def test_each_outcome_is_that_of_its_preference(models):
    records = [plain("", "x"), plain("a", "a"), plain("a", "b"), plain("x", ""), plain("c", "d")]
    preferences = [parse_preference(record, "f:1") for record in records]
    found = models["SmolLM2"].format.outcomes(preferences)
    assert [getattr(one, "reason", None) for one in found] == [EMPTY, IDENTICAL, None, EMPTY, None]
    assert models["SmolLM2"].format.outcomes([]) == []


# ---------------------------------------------------------------- held out


def test_a_share_of_the_prompts_is_held_out_whatever_their_answers():
    prompts = [np.array([n, 2 * n], dtype=np.int32) for n in range(4000)]
    held_out = [is_held_out(prompt, 0.1, seed=3) for prompt in prompts]
    assert 0.08 < sum(held_out) / len(held_out) < 0.12
    assert held_out == [is_held_out(prompt.astype(np.int64), 0.1, seed=3) for prompt in prompts]
    assert [is_held_out(prompts[0], share, 0) for share in (0.0, 1.0)] == [False, True]
    one, other = ([is_held_out(prompt, 0.5, seed) for prompt in prompts] for seed in (1, 2))
    assert 0.4 < np.mean(np.array(one) == np.array(other)) < 0.6


# ---------------------------------------------------------------- shown to people


@pytest.fixture
def qwen(tmp_path):
    return of_template(tmp_path, "qwen", QWEN25)


START = (
    "prompt: <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_the_prompt_is_shown_once_and_what_is_learned_is_marked(qwen):
    record = {"system": "Be brief.", "prompt": "Hi", "chosen": "Hello", "rejected": "Hello\x1b you"}
    assert marked_preference(qwen.chat.tokenizer, qwen.usable(record)) == [
        START,
        "chosen: ⟦Hello<|im_end|>⟧",
        "rejected: ⟦Hello\N{REPLACEMENT CHARACTER} you<|im_end|>⟧",
    ]


def test_later_questions_of_answers_that_differ_early_are_not_marked(qwen):
    user, later = {"role": "user", "content": "Hi"}, {"role": "user", "content": "And?"}
    a, b = ({"role": "assistant", "content": text} for text in "ab")
    record = {"chosen": [user, a, later, b], "rejected": [user, b]}
    _, chosen, rejected = marked_preference(qwen.chat.tokenizer, qwen.usable(record))
    assert chosen == (
        "chosen: ⟦a<|im_end|>⟧\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        "⟦b<|im_end|>⟧"
    )
    assert rejected == "rejected: ⟦b<|im_end|>⟧"


@pytest.mark.parametrize(("label", "name"), [(True, "desired"), (False, "undesired")])
def test_a_labelled_answer_says_its_label(qwen, label, name):
    record = {"system": "Be brief.", "prompt": "Hi", "completion": "Hello", "label": label}
    found = qwen.usable(record)
    assert marked_preference(qwen.chat.tokenizer, found) == [START, f"{name}: ⟦Hello<|im_end|>⟧"]


def test_a_long_answer_is_cut_where_it_is_shown(qwen):
    found = qwen.usable({"prompt": "Hi", "chosen": "a " * 90, "rejected": "b"})
    *_, chosen, rejected = marked_preference(qwen.chat.tokenizer, found, most=4)
    assert chosen.startswith("chosen: ⟦a")
    assert "more tokens)" in chosen
    assert rejected == "rejected: ⟦b<|im_end|>⟧"
