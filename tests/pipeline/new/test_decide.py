"""What records mean. A person decides what could be two things: at a terminal, or by an option."""

import json
from itertools import groupby
from types import SimpleNamespace

import pytest

from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.new.data_set import content_of
from pipeline.new.options import parse_roles
from pipeline.new.read import ReadItem
from tests.pipeline.new.conftest import decided
from tests.support.own_data import (
    csv_texts,
    customers,
    jsonl_texts,
    messages,
    prompter,
    sharegpt,
    texts_folder,
    write_lines,
)
from tests.support.peer_layouts import conversation_said, examples

PROSE = "a text of several words, which goes on"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CHOSEN = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def refusal(path, **said):
    with pytest.raises(BadInput) as raised:
        decided(path, **said)
    return str(raised.value)


def of(folder, *records, **said):
    (reading,) = decided(write_lines(folder / "data.jsonl", records), **said)
    return reading


def type_in(monkeypatch, *lines):
    given = iter(lines)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))


# ---------------------------------------------------------------- what records mean

DIRECT = {}
BODY = {"body": "text"}
COLUMNS = [
    ({"text": "short"}, "pretrain", {"text": "text"}),
    ({"id": 3, "body": PROSE, "url": "http://x/y"}, "pretrain", BODY),
    ({"text": PROSE, "title": PROSE}, "pretrain", {"text": "text"}),
    ({"body": PROSE, "by": [{"author": "Ann", "year": 1990}]}, "pretrain", BODY),
    ({"Unnamed: 0": PROSE, "__index_level_0__": PROSE, "body": PROSE}, "pretrain", BODY),
    ({"messages": TURNS, "prompt": PROSE}, "sft", DIRECT),
    ({"messages": json.dumps(TURNS), "conversations": None}, "sft", DIRECT),
    ({"dialog": [{"speaker": "gpt", "text": "Hi"}]}, "sft", {"dialog": "messages"}),
    ({"body": "<|im_start|>assistant\nHi<|im_end|>\n"}, "sft", {"body": "messages"}),
    ({"instruction": "a", "input": "b", "output": "c"}, "sft", DIRECT),
    ({"input": "a", "output": "c"}, "sft", DIRECT),
    ({"Question": "a", "Answer": "c"}, "sft", {"Question": "prompt", "Answer": "completion"}),
    ({"system": "s", "prompt": "a", "response": "c"}, "sft", DIRECT),
    # Alpaca's text repeats the other columns.
    ({"instruction": "a", "output": "c", "text": "### a ### c"}, "sft", DIRECT),
    (CHOSEN, "prefer", DIRECT),
    ({"prompt": "Why?", "completion": "So.", "label": True}, "prefer", DIRECT),
    ({"prompt": "6 * 7?", "ground_truth": "42"}, "reinforce", DIRECT),
    ({"messages": TURNS[:1], "ground_truth": 42}, "reinforce", DIRECT),
]


@pytest.mark.parametrize(("record", "stage", "columns"), COLUMNS)
def test_records_are_known_by_their_keys_and_texts(record, stage, columns, tmp_path):
    reading = of(tmp_path, record)
    assert (reading.stage, reading.columns) == (stage, columns)
    assert reading.copied == (stage == "sft" and bool(columns))
    assert content_of(reading, ReadItem("here", record, 0)).texts


def test_one_empty_right_answer_among_many_is_named_and_makes_no_text(tmp_path):
    good, empty = {"prompt": "6 * 7?", "answer_key": 1, "ground_truth": "42"}, {"prompt": "1 + 1?"}
    reading = of(tmp_path, good, {**empty, "ground_truth": ""}, good)
    assert reading.stage == "reinforce"
    with pytest.raises(BadInput, match=r"data:2: key 'ground_truth': the right answer can't be ''"):
        content_of(reading, ReadItem("data:2", {**empty, "ground_truth": ""}, 0))


ASKED = [
    ({"title": PROSE, "body": PROSE}, "--text-column", ("title", "body")),
    ({"a1": "x", "b1": "y"}, "--text-column", ("a1", "b1")),
    ({"body": "x", "n": 1}, "--text-column", ("body",)),
    ({"text": PROSE, "role": "user"}, "--text-column", ("text",)),
    ({"question": PROSE, "n": 1}, "--text-column", ("question",)),
    ({"messages": TURNS, "dialog": TURNS}, "--turns-column", ("messages", "dialog")),
    ({"prompt": "a", "query": "b", "answer": "c"}, "--question-column", ("prompt", "query")),
    ({"prompt": "a", "output": "b", "reply": "c"}, "--answer-column", ("output", "reply")),
    ({"question": "Why?", "answer": "So.", "text": PROSE}, "--use", ("chats", "text")),
]


@pytest.mark.parametrize(("record", "option", "answers"), ASKED)
def test_what_could_be_two_things_is_asked_or_refused_with_the_options(
    record, option, answers, tmp_path, monkeypatch, capsys
):
    data = write_lines(tmp_path / "data.jsonl", [record])
    options = " or ".join(f"{option} {answer}" for answer in answers)
    said = refusal(data)
    assert said.startswith(f"{data}: ")
    assert said.endswith(f"Decide with {options}. Nothing was written.")
    type_in(monkeypatch, str(len(answers)))
    (reading,) = decided(data)
    assert "".join(f"  {n}  {one}\n" for n, one in enumerate(answers, 1)) in capsys.readouterr().out
    (same,) = decided(data, **{option[2:].removesuffix("-column"): answers[-1]})
    assert reading == same
    type_in(monkeypatch, "3")
    assert "'3' is none of the answers. Nothing was written." in refusal(data)


CHAT = {"x": "a", "y": "b", "system": "s", "input": "c"}
COPY = {"x": "prompt", "y": "completion", "system": "system", "input": "context"}
# By a record and what the person says: the new names of its columns, or the refusal.
SAID = [
    ({"title": PROSE, "body": PROSE}, {"text": "body"}, BODY),
    ({**CHOSEN, "chosen": TURNS}, {"turns": "chosen"}, {"chosen": "messages"}),
    (CHAT, {"question": "x", "answer": "y"}, COPY),
    ({"question": "Why?", "answer": "So.", "text": PROSE}, {"use": "chats"}, DIRECT),
    ({"body": PROSE}, {"text": "bdy"}, "data.jsonl has no such column; did you mean"),
    ({"a": 1, "b": [2]}, {}, "no column has text. Its columns: a (int), b (list)"),
    ({"body": PROSE}, {"question": "body"}, "no two columns have the names of a question"),
    ({"text": PROSE}, {"use": "chats"}, "has no chats, only text"),
]


@pytest.mark.parametrize(("record", "said", "expected"), SAID)
def test_an_option_decides_and_what_is_not_there_is_refused(record, said, expected, tmp_path):
    if isinstance(expected, str):
        assert expected in refusal(write_lines(tmp_path / "data.jsonl", [record]), **said)
    else:
        assert of(tmp_path, record, **said).columns == expected


# ---------------------------------------------------------------- copies


def test_a_copy_has_the_chosen_columns_and_what_belongs_to_them(tmp_path):
    record = {"q1": "Add.", "input": "1, 2", "a1": 3, "system": "", "n": 1}
    record["history"] = [["Hi", "Hello"]]
    reading = of(tmp_path, record, question="q1", answer="a1")
    said = read_conversation(reading.usable(record), "here").messages
    assert [(m["role"], m["content"]) for m in said] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n\n1, 2"),
        ("assistant", "3"),
    ]
    assert reading.columns_in_words() == (
        "conversations: q1 as prompt, input as context, a1 as completion. Not used: n"
    )


def test_names_of_roles_are_given_in_any_letter_case_or_refused():
    roles = parse_roles("Agent=assistant, customer = USER,bot=human")
    assert roles == {"agent": "assistant", "customer": "user", "bot": "user"}
    for text in ("agent", "agent=", "=user", "agent=boss"):
        with pytest.raises(BadInput, match="should be NAME=ROLE, such as agent=assistant"):
            parse_roles(text)


def test_unknown_roles_are_asked_or_refused_with_their_line(tmp_path, monkeypatch):
    data = customers(tmp_path)
    said = refusal(data)
    assert f"{data}:1: unknown role 'customer'; did you mean 'user'?" in said
    assert "--roles 'customer=user,agent=assistant'" in said
    type_in(monkeypatch, "user", "assistant")
    (reading,) = decided(data)
    assert reading.roles == {"customer": "user", "agent": "assistant"}
    assert reading.copied
    (same,) = decided(data, roles=parse_roles("customer=user,agent=assistant"))
    assert same == reading
    turns = [{"role": "Agent", "content": "Hi", "name": "Ann"}, "no turn"]
    assert reading.usable({"messages": turns})["messages"] == [
        {"role": "assistant", "content": "Hi", "name": "Ann"},
        "no turn",
    ]


def test_roles_that_pion_knows_need_no_option(tmp_path):
    (reading,) = decided(prompter(tmp_path))
    assert (reading.roles, reading.copied) == ({}, False)


# ---------------------------------------------------------------- several files


def pairs(folder):
    write_lines(folder / "pairs.jsonl", [CHOSEN])


def a_text_and_a_table(folder):
    csv_texts(folder)
    write_lines(folder / "a.jsonl", [{"text": PROSE}])


APART = "A source of a job has one of them."
SEVERAL = [
    ((texts_folder, messages), None, "text and conversations are mixed: "),
    ((texts_folder, messages), None, "--use text, --use chats, or --use both"),
    ((texts_folder, messages), "text", ["text"]),
    ((texts_folder, messages), "chats", ["jsonl"]),
    ((texts_folder, messages), "both", ["text", "jsonl"]),
    ((jsonl_texts, messages), "both", "/articles.jsonl has text, and "),
    ((jsonl_texts, messages), "both", f"/chats.jsonl has conversations. {APART}"),
    ((jsonl_texts, pairs), None, f"/pairs.jsonl has preferences. {APART}"),
    ((messages, sharegpt), None, ["jsonl"]),
    ((a_text_and_a_table,), None, "/news.csv: the columns 'title' and 'body'"),
]


@pytest.mark.parametrize(("writers", "use", "expected"), SEVERAL)
def test_what_is_mixed_is_refused_unless_the_person_says_what_is_used(
    writers, use, expected, tmp_path
):
    for write in writers:
        write(tmp_path)
    if isinstance(expected, str):
        assert expected in refusal(tmp_path, use=use)
    else:
        data_sets = decided(tmp_path, use=use)
        assert [data.group.kind for data in data_sets] == expected
        assert not any(data.copied for data in data_sets)


# ---------------------------------------------------------------- layouts of peers

LAYOUTS = {
    name: list(found)
    for name, found in groupby(examples(), lambda example: example.name.partition(":")[0])
}
# Of these, `pion new` says which columns it takes, and writes a copy that a job reads.
COPIED = {"axolotl/oasst_upper_case.jsonl", "hub/complex_cot.jsonl", "services/dialog.jsonl"}


def test_what_a_job_reads_is_proposed_without_a_question(tmp_path):
    for name, every in LAYOUTS.items():
        if not (found := [example for example in every if "refused" not in example.means]):
            continue
        reading = of(tmp_path, *(example.value for example in found))
        assert not reading.copied, name
        if found[0].stage in ("prefer", "text"):
            assert reading.stage == {"text": "pretrain"}.get(found[0].stage, "prefer"), name
        else:
            for example in found:
                read = read_conversation(reading.usable(example.value), example.where)
                assert conversation_said(read)["messages"] == example.means["messages"], name


def test_what_a_job_refuses_is_not_proposed(tmp_path):
    for example in (one for name in LAYOUTS.keys() - COPIED for one in LAYOUTS[name]):
        if "refused" not in example.means or example.value.get("label") == 2:
            continue
        try:
            reading = of(tmp_path, example.value)
        except BadInput:
            continue
        if reading.stage not in ("prefer", "reinforce"):
            assert reading.stage == "sft", example.name
            with pytest.raises(BadInput):
                content_of(reading, ReadItem(example.where, example.value, 0))
