"""The JSON of answers."""

from pion.generation.answer import Drawn, Logprobs
from pipeline.serve.answer_json import CompletionShape
from pipeline.serve.answers import Part
from tests.support.finished_run import tiny_tokenizer


def test_the_likeliest_of_several_ids_with_one_text_is_listed():
    """A model may have more rows than its tokenizer has tokens: these ids have no text."""
    tokenizer = tiny_tokenizer()
    rows = [tokenizer.vocab_size + number for number in (5, 1, 3)]
    found = Logprobs(-4.0, tuple(zip(rows, (-0.5, -2.0, -3.0))))
    shape = CompletionShape("model", tokenizer, logprobs=True)
    answer = shape.chunk(Part(0, "", [Drawn(70, found)], "length"))
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"": -0.5}]
