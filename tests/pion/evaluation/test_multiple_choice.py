import json
import math

import numpy as np
import pytest
import torch

from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.evaluation.held_out import Scorer
from pion.evaluation.multiple_choice import _ScoredChoice, multiple_choice
from pion.evaluation.questions import Question, read_questions
from tests.support.known_models import OnSmallGpu, constant, decoder
from tests.support.tokenizer_kinds import tokenizer_of


def answer(model, tokenizer, questions, micro_batch):
    scorer = Scorer(model, tokenizer.vocab_size, micro_batch)
    return multiple_choice(scorer, tokenizer, questions).record


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat sat on the mat. a dog ate the bone. " * 4], 280)


def prefers(tokenizer, text, seq_len=64):
    """Return a model that gives only the tokens of `text` a high probability, at any position."""
    wanted = set(tokenizer.encode(text))
    return constant([4.0 if i in wanted else 0.0 for i in range(tokenizer.vocab_size)], seq_len)


def test_the_planted_answer_is_picked_wherever_it_stands(tokenizer):
    choices = (" sat on", " bone", "qqqq")
    model = prefers(tokenizer, " bone")
    right = [
        Question("the dog ate the", (*choices[i:], *choices[:i]), (1 - i) % 3) for i in (0, 1, 2)
    ]
    wrong = [Question("the dog ate the", choices, 2)]
    all_right = answer(model, tokenizer, right, 2)
    # Three right answers are no certainty.
    assert (all_right["accuracy"], all_right["accuracy_sem"]) == (1, 0.5 / 4)
    measured = answer(model, tokenizer, right + wrong, 2)
    assert measured["accuracy"] == 0.75
    assert measured["accuracy_sem"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert (measured["chance"], measured["questions"]) == (pytest.approx(1 / 3), 4)
    # A longer choice is not worse for its length, and an empty context is a document's start.
    longer = Question("the dog ate the", (" bone bone bone bone", " cat"), 0)
    assert (
        answer(model, tokenizer, [longer, Question("", (" cat", " bone"), 1)], 2)["accuracy"] == 1
    )
    uniform = prefers(tokenizer, "")
    questions = [Question("a", ("b", "c", "d", "e"), i % 4) for i in range(8)]
    assert answer(uniform, tokenizer, questions, 4)["accuracy"] == 0.25


def test_answers_are_those_of_the_full_forward_pass(tokenizer):
    """Contexts and choices have many lengths, so that padding and batches matter."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "the", "mat.", "a", "dog", "ate", "the", "bone."]

    def text(longest):
        return "".join(f" {word}" for word in rng.choice(words, rng.integers(1, longest)))

    model = decoder(tokenizer.vocab_size, 64)
    questions, expected = [], []
    for _ in range(24):
        distinct = tuple(dict.fromkeys(text(5) for _ in range(12)))[:3]
        question = Question(text(9), distinct, int(rng.integers(3)))
        scores = []
        for choice in question.choices:
            context, ids = tokenizer.encode(question.context), tokenizer.encode(choice)
            with torch.no_grad():
                log_p = model(torch.tensor([context + ids]))[0].log_softmax(dim=-1)
            at = [log_p[len(context) + i - 1, token] for i, token in enumerate(ids)]
            scores.append(float(sum(at)) / len(choice))
        expected.append(int(np.argmax(scores)) == question.answer)
        questions.append(question)
    assert 0 < sum(expected) < 24
    assert [answer(model, tokenizer, [q], 2)["accuracy"] for q in questions] == expected
    assert answer(model, tokenizer, questions, 7)["accuracy"] == pytest.approx(np.mean(expected))


def test_a_context_too_long_loses_its_beginning_and_not_the_choice(tokenizer):
    model = decoder(tokenizer.vocab_size, seq_len=8)
    end = "the cat sat on the mat. a dog ate"
    long, short = (Question(f"{start}{end}", (" a dog", " bone"), 0) for start in ("zq" * 40, "q"))
    scores = [answer(model, tokenizer, [q], 2)["accuracy"] for q in (long, short)]
    assert len(tokenizer.encode(end)) > 8
    assert scores[0] == scores[1]


def test_a_choice_longer_than_the_models_context_is_refused(tokenizer):
    with pytest.raises(BadInput, match=r"'qzqz.*100 tokens, more than the model's context of 8"):
        answer(decoder(tokenizer.vocab_size, 8), tokenizer, [Question("a", ("b", "qz" * 50), 0)], 2)


def test_out_of_memory_in_multiple_choice_changes_nothing(tokenizer):
    model = prefers(tokenizer, " bone")
    questions = [Question("the", (" cat" * i, " bone" * i, " dog"), 1) for i in (1, 2, 3)]
    small = OnSmallGpu(model, limit=2)
    assert answer(small, tokenizer, questions, 8)["accuracy"] == 1
    assert max(small.seen[-4:]) <= 2


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "Expecting property name enclosed in double quotes at column 2)"),
        ("[1]", "expected {"),
        (json.dumps({"context": "a", "answer": 0}), "choices missing"),
        (json.dumps(GOOD | {"context": 3}), "context is 3"),
        (json.dumps(GOOD | {"choices": ["b"]}), "list of two or more"),
        (json.dumps(GOOD | {"choices": ["b", ""]}), "non-empty"),
        (json.dumps(GOOD | {"answer": 2}), "answer is 2; expected an index from 0 to 1"),
        (json.dumps(GOOD | {"answer": True}), "answer is True"),
    ],
)
def test_a_line_that_is_not_a_question_is_named_by_file_and_line(line, message, tmp_path):
    pack, good = (
        tmp_path / "pack.jsonl",
        f"{json.dumps(GOOD)}\r\n{json.dumps(GOOD | {'answer': 0})}",
    )
    pack.write_text(good)
    assert read_questions(pack) == [Question("a", ("b", "c"), n) for n in (1, 0)]
    pack.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(BadInput) as error:
        read_questions(pack)
    assert str(error.value).startswith(f"{pack}:3")
    assert message in str(error.value)


@pytest.mark.parametrize("context", ["", "Return"])
def test_a_first_token_starts_every_question_once(context):
    llama = tokenizer_of("llama3")
    choice = _ScoredChoice.of(context, " the number", llama, 64)
    assert choice.ids == [llama.first, *llama.encode(f"{context} the number")]
