"""JSON that fits a schema, whatever the model would like to write."""

import json
import sys

import jsonschema
import pytest
import torch

import pion
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.generation.grammar import MOST_CHARACTERS, Grammars
from pion.generation.text import Settings, Text
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é €", 'q"']}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(['{"name": "Zoé €", "age": 12, "tags": []} and words'] * 8, 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Untrained, with more rows than the tokenizer has ids."""
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=384, seq_len=256)).eval()


def drawn(model, tokenizer, schema, **more):
    grammar = Grammars(tokenizer).of_schema(schema)
    fields = {"stop_ids": [tokenizer.end_of_text], "max_tokens": 200, **more}
    settings = Settings(vocab_size=tokenizer.vocab_size, grammar=grammar, **fields)
    texts = [Text(model, [5, 6], settings) for _ in range(2)]  # each copies the grammar
    for text in texts:
        while not text.ended:
            text.draw(model.logits(model.hidden(torch.tensor([text.ids])))[0, -1].detach())
    assert texts[0].ids == texts[1].ids
    return tokenizer.decode(texts[0].ids[2:]), texts[0]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_drawn_fits_the_schema(model, tokenizer, seed):
    text, state = drawn(model, tokenizer, SCHEMA, seed=seed, temperature=1.5, top_p=1.0, top_k=0)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert state.stopped


def test_an_answer_whose_stop_ids_are_ignored_ends_with_the_last_bracket(model, tokenizer):
    text, state = drawn(model, tokenizer, SCHEMA, seed=1, stop_ids=())
    assert text.endswith("}")
    assert state.stopped


def test_a_number_may_end_where_a_stop_id_is_drawn(model, tokenizer):
    stop = tokenizer.encode("x")[0]  # as <|im_end|>: not the id that ends documents
    more = {"stop_ids": [stop], "logit_bias": {stop: 100}, "seed": 1}
    text, state = drawn(model, tokenizer, {"type": "integer", "minimum": 10}, **more)
    assert state.stop_id == stop
    assert json.loads(text) >= 10


def test_an_answer_that_is_cut_off_is_the_beginning_of_json(model, tokenizer):
    text, state = drawn(model, tokenizer, SCHEMA, seed=1, max_tokens=5)
    assert text.startswith("{")
    assert not state.stopped


CAN_NOT_BE_MET = [
    ({"enum": []}, "Unsatisfiable"),
    ({"type": "nope"}, "nope"),
    ({"not": {}}, "not"),
    ({"$ref": "#/missing"}, "does not exist"),
    ({"$ref": "http://localhost:9/schema.json"}, "not"),  # nothing is fetched
    ({"type": "string", "pattern": "(a"}, "unclosed"),
    ({"enum": ["x" * MOST_CHARACTERS]}, "characters"),
]


@pytest.mark.parametrize(("schema", "words"), CAN_NOT_BE_MET)
def test_a_schema_that_can_not_be_met_is_refused_before_anything_is_drawn(schema, words, tokenizer):
    with pytest.raises(BadInput, match=words):
        Grammars(tokenizer).of_schema(schema)


def test_a_schema_that_would_take_minutes_is_refused(tokenizer, monkeypatch):
    """It has a kilobyte, and took 1.5 GB. None of llguidance's own limits holds for it."""
    monkeypatch.setattr("pion.generation.grammar.SECONDS", 1)
    patterns = [{"pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrst"]
    with pytest.raises(BadInput, match="takes more than 1 s or 1,024 MB"):
        Grammars(tokenizer).of_schema({"type": "string", "allOf": patterns})


def test_without_llguidance_the_package_to_install_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BadInput, match="uv sync --extra json"):
        Grammars(tokenizer).of_schema({"type": "object"})
    assert list(pion.generate(Decoder(tiny_config()), [5], stop_ids=(), max_tokens=1))
