import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pion.config import ModelConfig
from pion.data.order import RowOrder
from pion.data.shards import IGNORED, Manifest, Rows, describe
from pion.data.stream import RowStream
from pion.data.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput, PionError
from pion.evaluate import (
    Question,
    held_out,
    multiple_choice,
    ratio,
    read_questions,
    responses,
    summarize,
)
from pion.model.decoder import Decoder

VOCAB, SEQ_LEN = 12, 16


def decoder(
    vocab_size: int = VOCAB, seq_len: int = SEQ_LEN, seed: int = 0, tied: bool = True
) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(
        ModelConfig(
            d_model=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            d_ff=16,
            vocab_size=vocab_size,
            seq_len=seq_len,
            init_std=0.5,
            tie_embeddings=tied,
        )
    )


def constant(log_odds: list[float], seq_len: int = SEQ_LEN) -> Decoder:
    """A model whose logits are `log_odds` everywhere, since every hidden state is the same."""
    model = decoder(len(log_odds), seq_len, tied=False)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embed.weight.zero_()[:, 0] = 1000.0
        model.norm.weight.fill_(1 / math.sqrt(model.config.d_model))  # RMS norm makes it √d_model
        model.lm_head.weight.zero_()[:, 0] = torch.tensor(log_odds)
    return model


def stream(rows: np.ndarray, folder: Path, vocab_size: int = VOCAB) -> RowStream:
    """The rows, as documents, in order."""
    np.save(folder / "shard_00000.npy", rows.astype(np.uint16))
    shard = describe(folder / "shard_00000.npy", rows.shape[1])
    manifest = Manifest("tokens", rows.shape[1], vocab_size, (shard,))
    order = RowOrder([shard.rows], manifest.fingerprint, seed=0, window=1)
    return RowStream([(Rows(manifest, lambda s: folder / s.name), order)])


def random_rows(rows: int = 10, vocab_size: int = VOCAB, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, SEQ_LEN))


# ---------------------------------------------------------------- text


def test_a_model_of_known_logits_gets_the_loss_worked_out_by_hand(tmp_path: Path) -> None:
    log_odds = [0.3 * i + 1 for i in range(VOCAB)]
    rows = random_rows()
    measured = held_out(
        constant(log_odds), stream(rows, tmp_path), range(10), np.ones(VOCAB), VOCAB, 4
    )
    log_p = np.array(log_odds) - np.log(np.exp(log_odds).sum())
    assert measured.loss == pytest.approx(-log_p[rows[:, 1:]].mean(), rel=1e-6)
    assert measured.perplexity == pytest.approx(math.exp(measured.loss))
    assert (measured.rows, measured.tokens) == (10, 10 * (SEQ_LEN - 1))


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_per_byte(
    tmp_path: Path,
) -> None:
    rows = random_rows()
    token_bytes = np.arange(VOCAB)  # id 0 is special: 0 bytes
    measured = held_out(
        constant([1.0] * VOCAB), stream(rows, tmp_path), range(10), token_bytes, VOCAB, 4
    )
    size = token_bytes[rows[:, 1:]].sum()
    assert measured.bytes == size
    assert measured.bits_per_byte == pytest.approx(math.log2(VOCAB) * measured.tokens / size)
    assert measured.loss_sem == pytest.approx(0, abs=1e-6)
    assert measured.bits_per_byte_sem > 0  # rows of equal loss differ in bytes


def test_embedding_rows_the_tokenizer_lacks_take_no_probability(tmp_path: Path) -> None:
    rows = random_rows(vocab_size=8)
    data = stream(rows, tmp_path)
    uniform = constant([1.0] * 8 + [5.0] * 4)
    measured = held_out(uniform, data, range(10), np.ones(8), 8, 4)
    assert measured.loss == pytest.approx(math.log(8), rel=1e-6)
    assert held_out(uniform, data, range(10), np.ones(12), 12, 4).loss > measured.loss + 1


def test_the_loss_is_the_one_the_decoder_trains_on(tmp_path: Path) -> None:
    model, rows = decoder(), random_rows()
    measured = held_out(model, stream(rows, tmp_path), range(10), np.ones(VOCAB), VOCAB, 3)
    tokens = torch.from_numpy(rows)
    expected = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert measured.loss == pytest.approx(expected, rel=1e-5)


def test_chunks_of_logits_and_batches_of_rows_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = decoder(), stream(random_rows(), tmp_path)
    whole = held_out(model, data, range(10), np.ones(VOCAB), VOCAB, 10)
    monkeypatch.setattr("pion.evaluate.LOGITS_AT_ONCE", 7 * VOCAB)
    parts = held_out(model, data, range(10), np.ones(VOCAB), VOCAB, 1)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.loss_sem == pytest.approx(whole.loss_sem, rel=1e-4)


def test_ids_beyond_the_tokenizer_and_no_rows_are_refused(tmp_path: Path) -> None:
    data = stream(random_rows(), tmp_path)
    with pytest.raises(BadInput, match="id 11 in the data is beyond the tokenizer's 8 ids"):
        held_out(decoder(), data, range(10), np.ones(8), 8, 4)
    with pytest.raises(BadInput, match="no held-out rows"):
        held_out(decoder(), data, range(0), np.ones(VOCAB), VOCAB, 4)


def test_training_mode_and_gradients_are_left_as_they_were(tmp_path: Path) -> None:
    model = decoder().train()
    held_out(model, stream(random_rows(), tmp_path), range(2), np.ones(VOCAB), VOCAB, 4)
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_diverged_model_is_reported_as_such_instead_of_failing(tmp_path: Path) -> None:
    hopeless = constant([0.0] * (VOCAB - 1) + [2000.0])
    rows = np.zeros((2, SEQ_LEN), dtype=np.int64)
    measured = held_out(hopeless, stream(rows, tmp_path), range(2), np.ones(VOCAB), VOCAB, 4)
    assert measured.loss == pytest.approx(2000)
    assert measured.perplexity == math.inf


# ---------------------------------------------------------------- memory


class OnSmallGpu:
    """A decoder on a card with room for `limit` sequences."""

    def __init__(self, model: Decoder, limit: int) -> None:
        self.model, self.limit, self.seen = model, limit, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def hidden(self, tokens: torch.Tensor, **rest: object) -> torch.Tensor:
        self.seen.append(len(tokens))
        if len(tokens) > self.limit:
            raise torch.cuda.OutOfMemoryError("tried to allocate 3.00 GiB")
        return self.model.hidden(tokens, **rest)


def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_result(tmp_path: Path) -> None:
    model, data = decoder(), stream(random_rows(11), tmp_path)
    small = OnSmallGpu(model, limit=2)
    measured = held_out(small, data, range(11), np.ones(VOCAB), VOCAB, 8)
    assert measured.loss == pytest.approx(
        held_out(model, data, range(11), np.ones(VOCAB), VOCAB, 8).loss, rel=1e-6
    )
    assert small.seen == [8, 4, 2, 2, 2, 2, 2, 1]


def test_a_single_sequence_that_does_not_fit_says_what_is_safe(tmp_path: Path) -> None:
    data = stream(random_rows(), tmp_path)
    with pytest.raises(PionError, match=r"single sequence .*3\.00 GiB.* checkpoints are safe"):
        held_out(OnSmallGpu(decoder(), 0), data, range(10), np.ones(VOCAB), VOCAB, 8)


# ---------------------------------------------------------------- standard errors


def test_the_standard_error_of_a_ratio_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 50, 400)
    amounts = sizes * rng.normal(3, 0.5, 400) + rng.normal(0, 10, 400)
    value, sem = ratio(amounts, sizes)
    resampled = []
    for _ in range(2000):
        i = rng.integers(0, 400, 400)
        resampled.append(amounts[i].sum() / sizes[i].sum())
    assert value == pytest.approx(amounts.sum() / sizes.sum())
    assert sem == pytest.approx(np.std(resampled), rel=0.1)


def test_tokens_that_go_together_in_a_row_give_a_larger_error_than_independent_ones() -> None:
    rng = np.random.default_rng(0)
    targets = np.ones((100, 64), dtype=np.int64)
    together = np.repeat(rng.exponential(1, (100, 1)), 64, axis=1)
    apart = rng.exponential(1, (100, 64))
    of_rows = summarize(together, targets, np.ones(2)).loss_sem
    of_tokens = summarize(apart, targets, np.ones(2)).loss_sem
    assert of_rows == pytest.approx(8 * of_tokens, rel=0.3)  # √64


def test_a_single_row_has_no_standard_error_and_ignored_targets_do_not_count() -> None:
    nll, targets = np.array([[1.0, 9.0, 3.0]]), np.array([[1, IGNORED, 1]])
    measured = summarize(nll, targets, np.array([0, 4]))
    assert (measured.loss, measured.tokens, measured.bytes) == (2.0, 2, 8)
    assert math.isnan(measured.loss_sem)


# ---------------------------------------------------------------- conversations


class Conversations:
    """Rows in which only some targets are learned; 0 ends a turn."""

    def __init__(self, tokens: list[list[int]], learned: list[list[int]]) -> None:
        self.tokens, self.learned = torch.tensor(tokens), torch.tensor(learned, dtype=torch.bool)

    def batch(self, indices: list[int]) -> object:
        from pion.data.stream import Batch

        tokens = self.tokens[indices]
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = tokens[:, 1:]
        targets[:, :-1][~self.learned[indices][:, 1:]] = IGNORED
        documents = torch.zeros_like(tokens)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return Batch(tokens, targets, positions, documents)


CONVERSATIONS = Conversations(
    [[5, 6, 7, 0, 5, 8], [5, 9, 0, 7, 7, 0]], [[0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
)


def test_response_loss_counts_learned_tokens_alone() -> None:
    log_odds = [0.2 * i for i in range(VOCAB)]
    measured = responses(constant(log_odds), CONVERSATIONS, range(2), 0, VOCAB, 4)
    log_p = np.array(log_odds) - np.log(np.exp(log_odds).sum())
    assert measured.response_loss == pytest.approx(-log_p[[6, 7, 0, 9, 0]].mean(), rel=1e-6)
    assert measured.response_loss_sem > 0


def test_a_model_that_always_stops_has_every_stop_right_and_every_other_token_wrong() -> None:
    always = responses(constant([9.0] + [0.0] * 11), CONVERSATIONS, range(2), 0, VOCAB, 4)
    never = responses(constant([-9.0] + [0.0] * 11), CONVERSATIONS, range(2), 0, VOCAB, 4)
    assert (always.stop_accuracy, always.false_stop_rate) == (1.0, 1.0)
    assert (never.stop_accuracy, never.false_stop_rate) == (0.0, 0.0)


# ---------------------------------------------------------------- multiple choice


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat. a dog ate the bone. " * 4], 280)


def prefers(tokenizer: Tokenizer, text: str, seq_len: int = 64) -> Decoder:
    """A model that gives the tokens of `text`, and no others, a high probability anywhere."""
    wanted = set(tokenizer.encode(text))
    return constant([4.0 if i in wanted else 0.0 for i in range(tokenizer.vocab_size)], seq_len)


def test_the_planted_answer_is_picked_wherever_it_stands(tokenizer: Tokenizer) -> None:
    choices = (" sat on", " bone", "qqqq")
    model = prefers(tokenizer, " bone")
    right = [
        Question("the dog ate the", (*choices[i:], *choices[:i]), (1 - i) % 3) for i in (0, 1, 2)
    ]
    wrong = [Question("the dog ate the", choices, 2)]
    assert multiple_choice(model, tokenizer, right, 2).accuracy == 1
    measured = multiple_choice(model, tokenizer, right + wrong, 2)
    assert measured.accuracy == 0.75
    assert measured.accuracy_sem == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert (measured.chance, measured.questions) == (pytest.approx(1 / 3), 4)


def test_a_longer_choice_is_not_worse_for_its_length(tokenizer: Tokenizer) -> None:
    model = prefers(tokenizer, " bone")
    question = Question("the dog ate the", (" bone bone bone bone", " cat"), 0)
    assert multiple_choice(model, tokenizer, [question], 2).accuracy == 1


def test_answers_are_those_of_the_full_forward_pass(tokenizer: Tokenizer) -> None:
    """Contexts and choices of many lengths, so that padding and batches have a say."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "the", "mat.", "a", "dog", "ate", "the", "bone."]

    def text(longest: int) -> str:
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
    measured = [multiple_choice(model, tokenizer, [q], 2).accuracy for q in questions]
    assert measured == expected
    together = multiple_choice(model, tokenizer, questions, 7)
    assert together.accuracy == pytest.approx(np.mean(expected))


def test_a_model_that_knows_nothing_scores_chance(tokenizer: Tokenizer) -> None:
    uniform = prefers(tokenizer, "")
    questions = [Question("a", ("b", "c", "d", "e"), i % 4) for i in range(8)]
    assert multiple_choice(uniform, tokenizer, questions, 4).accuracy == 0.25


def test_a_context_too_long_loses_its_beginning_and_not_the_choice(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer.vocab_size, seq_len=8)
    end = "the cat sat on the mat. a dog ate"
    long, short = (Question(f"{start}{end}", (" a dog", " bone"), 0) for start in ("zq" * 40, "q"))
    scores = [multiple_choice(model, tokenizer, [q], 2).accuracy for q in (long, short)]
    assert len(tokenizer.encode(end)) > 8
    assert scores[0] == scores[1]


def test_an_empty_context_is_the_start_of_a_document(tokenizer: Tokenizer) -> None:
    model = prefers(tokenizer, "dog")
    assert multiple_choice(model, tokenizer, [Question("", ("cat", "dog"), 1)], 2).accuracy == 1


def test_a_choice_longer_than_the_models_context_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadInput, match=r"'qzqz.*100 tokens, more than the model's context of 8"):
        multiple_choice(
            decoder(tokenizer.vocab_size, 8), tokenizer, [Question("a", ("b", "qz" * 50), 0)], 2
        )


def test_out_of_memory_in_multiple_choice_changes_nothing(tokenizer: Tokenizer) -> None:
    model = prefers(tokenizer, " bone")
    questions = [Question("the", (" cat" * i, " bone" * i, " dog"), 1) for i in (1, 2, 3)]
    small = OnSmallGpu(model, limit=2)
    assert multiple_choice(small, tokenizer, questions, 8).accuracy == 1
    assert max(small.seen[-4:]) <= 2


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "broken JSON at column 2"),
        ("[1]", "expected {"),
        (json.dumps({"context": "a", "answer": 0}), "it lacks choices"),
        (json.dumps(GOOD | {"context": 3}), "context is 3"),
        (json.dumps(GOOD | {"choices": ["b"]}), "list of two or more"),
        (json.dumps(GOOD | {"choices": ["b", ""]}), "not empty"),
        (json.dumps(GOOD | {"answer": 2}), "answer is 2; expected an index from 0 to 1"),
        (json.dumps(GOOD | {"answer": True}), "answer is True"),
    ],
)
def test_a_line_that_is_not_a_question_is_named_by_file_and_line(
    line: str, message: str, tmp_path: Path
) -> None:
    pack = tmp_path / "pack.jsonl"
    pack.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(BadInput) as error:
        read_questions(pack)
    assert str(error.value).startswith(f"{pack}:3: ")
    assert message in str(error.value)


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    pack = tmp_path / "pack.jsonl"
    pack.write_bytes(b'{"context": "\xff\xfe"}\n')
    with pytest.raises(BadInput, match=r"pack\.jsonl:1: not a question"):
        read_questions(pack)


def test_a_missing_and_an_empty_pack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can't read these questions"):
        read_questions(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="no question in it"):
        read_questions(tmp_path / "empty.jsonl")


def test_good_questions_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "pack.jsonl").write_text(
        json.dumps(GOOD) + "\r\n" + json.dumps(GOOD | {"answer": 0})
    )
    assert read_questions(tmp_path / "pack.jsonl") == [
        Question("a", ("b", "c"), 1),
        Question("a", ("b", "c"), 0),
    ]
