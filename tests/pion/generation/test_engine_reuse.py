"""The engine does not read again what a slot has read, and the answers are the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pion.generation import decoding
from pion.generation import engine as engine_module
from pion.generation.answer import Ended, Failed
from pion.generation.decoding import LEAST_REUSED
from pion.generation.engine import Engine
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB, Family, each_family
from tests.pion.generation.test_engine import Client, engines, every_logprob, initial, start

__all__ = ["engines"]
SYSTEM = [number % 40 + 4 for number in range(LEAST_REUSED + 1)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each row that each pass has read, but for steps of one token."""
    counts: list[int] = []
    cache_tokens = decoding.cache_tokens

    def counted(
        model: Decoder, rows: Sequence[Sequence[int]], cache: KVCache, first: int = 0
    ) -> torch.Tensor:
        counts.extend(len(row) for row in rows if len(row) > 1)
        return cache_tokens(model, rows, cache, first)

    monkeypatch.setattr(decoding, "cache_tokens", counted)
    return counts


def ask(engine: Engine, client: Client) -> list[int]:
    """Return the ids of the whole text when the answer has ended."""
    engine.submit([client.answer])
    assert isinstance(client.wait(), Ended)
    return client.answer.text.ids


@each_family
def test_the_next_turn_reads_what_is_new_and_gets_the_same_probabilities(
    family: Family, engines: list[Engine], read: list[int]
) -> None:
    ternary = family is FAMILIES["ternary"]
    model = initial(family) if ternary else family.decoder()
    settings = {"top": VOCAB, "temperature": 0, "stop_ids": (), "max_tokens": 4}
    engine = start(engines, model)
    first = ask(engine, Client(model, SYSTEM, **settings))
    turn = [*first, 5, 6, 7]
    again, fresh = (Client(model, turn, **settings) for _ in range(2))
    ask(engine, again)
    assert read == [len(SYSTEM), 4]  # the last token that was drawn, and the new ones
    assert again.answer.cached_tokens == len(turn) - 4
    ask(start(engines, model), fresh)
    assert again.tokens == fresh.tokens
    for one, other in zip(again.drawn, fresh.drawn, strict=True):
        bound = 1e-2 if ternary else 1e-4
        assert (every_logprob(one) - every_logprob(other)).abs().max() < bound


def test_an_answer_that_is_edited_keeps_what_comes_before(
    engines: list[Engine], read: list[int]
) -> None:
    model = FAMILIES["pion"].decoder()
    engine = start(engines, model)
    ask(engine, Client(model, [*SYSTEM, 5, 6, 7], stop_ids=(), max_tokens=9))
    other = Client(model, [*SYSTEM, 5, 9], seed=1, stop_ids=(), max_tokens=9)
    ask(engine, other)
    assert other.answer.cached_tokens == len(SYSTEM) + 1
    ask(
        start(engines, model),
        fresh := Client(model, [*SYSTEM, 5, 9], seed=1, stop_ids=(), max_tokens=9),
    )
    assert other.tokens == fresh.tokens


def test_several_answers_to_one_prompt_read_it_once(
    engines: list[Engine], read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PIECE", 16)  # so the prompt is a long one
    model = FAMILIES["pion"].decoder()
    clients = [Client(model, SYSTEM, seed=n, stop_ids=()) for n in range(3)]
    engine = start(engines, model)
    engine.submit([client.answer for client in clients])
    for client in clients:
        client.wait()
    assert sum(read) <= len(SYSTEM)
    for n, client in enumerate(clients):
        ask(start(engines, model), alone := Client(model, SYSTEM, seed=n, stop_ids=()))
        assert client.tokens == alone.tokens


def test_the_text_that_was_used_least_recently_goes_first(
    engines: list[Engine], read: list[int]
) -> None:
    model = FAMILIES["pion"].decoder()
    engine = start(engines, model, slots=2)
    texts = {}
    for name, first in (("a", 41), ("b", 42)):
        texts[name] = ask(engine, Client(model, [first, *SYSTEM], stop_ids=(), max_tokens=2))
    texts["a"] = ask(engine, Client(model, [*texts["a"], 5], stop_ids=(), max_tokens=2))
    ask(engine, Client(model, [43, *SYSTEM], stop_ids=(), max_tokens=2))  # takes the slot of b
    for name, kept in (("a", True), ("b", False)):
        client = Client(model, [*texts[name], 5], stop_ids=(), max_tokens=2)
        ask(engine, client)
        assert (client.answer.cached_tokens > 0) == kept


def test_a_conversation_next_to_others_keeps_its_row_when_they_leave(
    engines: list[Engine],
) -> None:
    """Rows move while others are read and end; each text must keep its own keys."""
    model = FAMILIES["pion"].decoder()
    engine = start(engines, model, slots=3)
    texts = [[40 + n, *SYSTEM] for n in range(5)]
    for turn in range(4):
        clients = [
            Client(model, ids, seed=turn, stop_ids=(), max_tokens=1 + (n + turn) % 3)
            for n, ids in enumerate(texts)
        ]
        engine.submit([client.answer for client in clients])
        for n, client in enumerate(clients):
            client.wait()
            alone = Client(model, texts[n], seed=turn, stop_ids=(), max_tokens=1 + (n + turn) % 3)
            ask(start(engines, model), alone)
            assert client.tokens == alone.tokens
            texts[n] = [*client.answer.text.ids, 5]
    assert len(texts[0]) < SEQ_LEN


def test_a_prompt_whose_probabilities_are_asked_is_read_whole(engines: list[Engine]) -> None:
    model = FAMILIES["pion"].decoder()
    engine = start(engines, model)
    ask(engine, Client(model, SYSTEM, stop_ids=(), max_tokens=2))
    client = Client(model, [*SYSTEM, 5], top=1, stop_ids=(), max_tokens=2)
    client.answer.scores_prompt = True
    engine.submit([client.answer])
    scored = client.events.get()
    assert len(scored.logprobs) == len(SYSTEM)
    assert client.answer.cached_tokens == 0


def test_what_a_text_that_failed_has_read_is_not_used_again(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["pion"].decoder()
    broken = Client(model, SYSTEM, stop_ids=())

    def fail(*_: object) -> None:
        raise RuntimeError("no such probability")

    monkeypatch.setattr(broken.answer.text, "next_draw", fail)
    engine = start(engines, model, slots=1)
    engine.submit([broken.answer])
    assert isinstance(broken.wait(), Failed)
    after = Client(model, [*SYSTEM, 5], stop_ids=(), max_tokens=2)
    ask(engine, after)
    assert after.answer.cached_tokens == 0
