"""A person decides what could mean two things: at a terminal, or by an option."""

from types import SimpleNamespace

import pytest

from pion.errors import BadInput
from pipeline.new.chats import parse_roles
from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.layouts import TextColumn, TurnsColumn, Wishes
from tests.support.own_data import (
    csv_texts,
    customers,
    jsonl_texts,
    messages,
    prompter,
    sharegpt,
    texts_folder,
)


def decided(path, wishes=None):
    return decide(find_data(path), wishes or Wishes())


def refusal(path, wishes=None):
    with pytest.raises(BadInput) as raised:
        decided(path, wishes)
    return str(raised.value)


def type_in(monkeypatch, *lines):
    given = iter(lines)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))


def test_without_a_terminal_the_options_that_decide_are_named(tmp_path):
    said = refusal(csv_texts(tmp_path))
    assert "the columns 'title' and 'body' could all be the text. Which is it?" in said
    assert "Decide with --text-column title or --text-column body." in said


def test_at_a_terminal_the_person_is_asked(tmp_path, monkeypatch, capsys):
    data = csv_texts(tmp_path)
    type_in(monkeypatch, "2")
    (reading,) = decided(data)
    assert reading.layout == TextColumn("body")
    assert "  1  title\n  2  body\n" in capsys.readouterr().out
    type_in(monkeypatch, "3")
    assert "'3' is none of the answers. Nothing was written." in refusal(data)


def test_unknown_roles_are_asked_or_refused_with_their_line(tmp_path, monkeypatch):
    data = customers(tmp_path)
    said = refusal(data)
    assert f"{data}:1: unknown role 'customer'; did you mean 'user'?" in said
    assert "--roles 'customer=user,agent=assistant'" in said
    type_in(monkeypatch, "user", "assistant")
    (reading,) = decided(data)
    assert reading.roles == {"customer": "user", "agent": "assistant"}
    assert not reading.direct
    (same,) = decided(data, Wishes(roles=parse_roles("customer=user,agent=assistant")))
    assert same == reading


def test_roles_that_pion_knows_need_no_option(tmp_path):
    (reading,) = decided(prompter(tmp_path))
    assert reading.layout == TurnsColumn("conversations", "from", "value")
    assert reading.direct
    assert reading.roles == {}


def test_text_and_conversations_are_mixed(tmp_path):
    texts_folder(tmp_path)
    messages(tmp_path)
    said = refusal(tmp_path)
    assert "text and conversations are mixed" in said
    assert "--use text, --use chats, or --use both" in said
    (text,) = decided(tmp_path, Wishes(use="text"))
    assert text.group.kind == "text"
    (chats,) = decided(tmp_path, Wishes(use="chats"))
    assert chats.group.kind == "jsonl"
    assert len(decided(tmp_path, Wishes(use="both"))) == 2


def test_text_and_conversations_are_mixed_in_files_of_one_kind(tmp_path):
    jsonl_texts(tmp_path)
    chats = messages(tmp_path)
    said = refusal(tmp_path, Wishes(use="both"))
    assert f"articles.jsonl is text, and {chats} has conversations" in said
    assert "Give one of the files" in said


def test_both_layouts_of_conversations_may_be_in_one_folder(tmp_path):
    messages(tmp_path)
    sharegpt(tmp_path)
    (reading,) = decided(tmp_path)
    assert reading.direct


def test_there_is_nothing_of_what_was_asked_for(tmp_path):
    assert "has no chats, only text" in refusal(jsonl_texts(tmp_path), Wishes(use="chats"))
