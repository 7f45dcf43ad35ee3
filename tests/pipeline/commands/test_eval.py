"""`pion eval`: bits per byte of a text, accuracy of multiple choice."""

import json
from pathlib import Path

import pytest

from pion.data.tokens.tokenizer import Tokenizer
from pipeline.commands.chat import tell_replaced
from tests.support.finished_run import make_run, tiny_model, tiny_tokenizer
from tests.support.tokenizer_kinds import without_bytes


def test_eval_measures_text_and_multiple_choice(here, pion):
    make_run(here / "runs")
    Path("text.txt").write_text("Return a new header with string. " * 20)
    question = {"context": "Return a", "choices": [" new", " jumps"], "answer": 0}
    Path("pack.jsonl").write_text(json.dumps(question) + "\n")
    code, out, _ = pion("eval", "demo", "text.txt", "pack.jsonl", "--json")
    assert code == 0
    text, pack = json.loads(out).values()
    assert text["bytes"] == len(Path("text.txt").read_bytes())
    assert text["bits_per_byte"] > 0
    assert text["calibration"]["tokens"] == text["tokens"]
    assert (pack["questions"], pack["chance"]) == (1, 0.5)
    _, out, _ = pion("eval", "demo", "text.txt", "pack.jsonl")
    assert out.startswith("text.txt: bits per byte ")
    assert " bytes), likeliest tokens " in out
    assert "pack.jsonl: accuracy " in out


def test_characters_that_the_vocabulary_lacks_are_said(capsys):
    tokenizer = Tokenizer(json.dumps(without_bytes()), "x")
    tell_replaced(tokenizer, "as usual", "a.txt")
    tell_replaced(tokenizer, "odd \x04", "b.txt")
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "1 character is not in the model's vocabulary and became U+FFFD: b.txt (U+0004)" in err


def test_eval_measures_the_texts_of_json_lines_and_keeps_what_it_measured(here, pion):
    make_run(here / "runs")
    texts = ["Return a new header. " * 5, "It has strings. " * 9]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Path("wrong.jsonl").write_text('{"story": 1}\n')
    code, out, err = pion("eval", "demo", "texts.jsonl", "wrong.jsonl")
    assert code == 2
    assert "wrong.jsonl:1: not a question" in err
    assert out.startswith("texts.jsonl: bits per byte ")
    assert f"{sum(map(len, texts)):,} bytes" in out
    assert '"bits_per_byte"' in pion("eval", "demo", "texts.jsonl", "wrong.jsonl", "--json")[1]


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"", [], "has no text"),
        (b"\xff", [], "can't read this"),
        (b"Return a new header.", ["--skip-above", "0.5"], "has no gates"),
    ],
)
def test_eval_of_what_is_no_text_or_of_layers_without_gates_is_refused(
    here, pion, content, options, expected
):
    make_run(here / "runs")
    Path("text.txt").write_bytes(content)
    code, _, err = pion("eval", "demo", "text.txt", *options)
    assert code == 2
    assert expected in err


def test_text_is_scored_token_by_token_like_a_full_forward(here):
    import torch

    from pipeline.commands.eval import measure_texts

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size)
    text = "Return a new header."
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)]])
    expected = model.loss(ids[:, :-1], ids[:, 1:]).item()
    result = measure_texts(model, tokenizer, [text])
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["tokens"] == ids.shape[1] - 1
    long = measure_texts(model, tokenizer, [text * 20], rows_at_once=2)
    assert long["rows"] == -(-long["tokens"] // model.config.seq_len)


def test_a_model_with_gates_is_measured_while_it_skips_layers(here, pion):
    make_run(here / "runs", gates=True)
    Path("text.txt").write_text("Return a new header with string. ")

    def bits(*options):
        code, out, _ = pion("eval", "demo", "text.txt", "--json", *options)
        assert code == 0
        return float(json.loads(out)["text.txt"]["bits_per_byte"])

    all_layers = bits()
    assert bits("--skip-above", "1") == pytest.approx(all_layers, rel=1e-6)
    # With random weights, each layer adds something.
    assert abs(bits("--skip-above", "0") - all_layers) > 1e-4
    generate = ("generate", "demo", "--prompt", "Return", "--max-tokens", "2")
    assert pion(*generate, "--skip-above", "0.5")[0] == 0
