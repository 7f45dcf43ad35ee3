"""Bad input through the whole command: exit code 2, one clear message, no traceback, no work.

tests/hostile/test_data.py has lines and shards that are damaged.
"""

import json

import numpy as np
import pytest

from pion.data.tokens.tokenizer import train_bpe
from pipeline.cli import main
from tests.support.whole_runs import write_job


def source(**fields):
    return {"data__sources": [fields]}


def missing_file(folder):
    return source(kind="text", path="not-there.txt")


def empty_corpus(folder):
    (folder / "empty.txt").write_text("")
    return source(kind="text", path="empty.txt")


def corpus_smaller_than_a_batch(folder):
    return {"pretrain__global_batch": 4096}


def with_shard_of(folder, token):
    """Return a job whose only text is one `.npy` shard, of one token again and again."""
    (folder / "shards").mkdir()
    ids = np.full((500, 32), token, dtype=np.int32)
    np.save(folder / "shards" / "shard_00000.npy", ids)
    train_bpe(["some text to learn bytes from"], 320).save(folder / "tokenizer.json")
    tokenizer = {"tokenizer": {"file": "tokenizer.json"}, "model__vocab_size": 320}
    return source(kind="npy", path="shards") | tokenizer


def ids_beyond_the_vocabulary(folder):
    return with_shard_of(folder, 999)


def shard_without_end_of_text(folder):
    return with_shard_of(folder, 5) | {"data__documents": True}


def tokenizer_larger_than_the_model(folder):
    return {"model__vocab_size": 259}


def conversation_without_an_assistant(folder):
    talk = {"conversations": [{"from": "human", "value": "anyone there?"}]}
    (folder / "alone.jsonl").write_text(json.dumps(talk) + "\n")
    return {"sft__sources": [{"kind": "jsonl", "path": "alone.jsonl"}]}


def missing_tokenizer(folder):
    return {"tokenizer": {"file": "no-tokenizer.json"}, "model__vocab_size": 320}


CASES = [
    (missing_file, ["data.sources.0", "not-there.txt"]),
    (empty_corpus, ["empty.txt"]),
    (corpus_smaller_than_a_batch, ["smaller than one batch", "4,096"]),
    (ids_beyond_the_vocabulary, ["shard_00000.npy", "999"]),
    (
        shard_without_end_of_text,
        ["data.sources.0: there is no end-of-text (<|endoftext|>, id 0)", "data.documents=false"],
    ),
    (tokenizer_larger_than_the_model, ["tokenizer", "259"]),
    (conversation_without_an_assistant, ["alone.jsonl:1", "no assistant turn"]),
    (missing_tokenizer, ["no-tokenizer.json"]),
]


@pytest.mark.parametrize(("case", "said"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_it_is_said_clearly_and_nothing_is_trained(case, said, tmp_path, capsys):
    job = write_job(tmp_path, **case(tmp_path))
    code = main(["run", str(job)])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    for words in said:
        assert words in error
    assert "Traceback" not in error
    assert "bug" not in error
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"experts": {"n": 4, "d_shared": 16, "topk": 2}}, "model.experts.topk: unknown key"),
        ({"experts": {"d_shared": 16}}, "experts.n"),
        ({"experts": 4}, "model.experts"),
        ({"slots": {"segment": 97}}, "slots.segment 97 is longer than the model's context of 96"),
        (
            {"slots": {"segment": 33}},
            "data.seq_len: rows of 32 tokens are shorter than the model's segments of 33, so no "
            "slot would ever be trained. Give longer rows, or a smaller model.slots.segment",
        ),
    ],
)
def test_a_model_that_can_not_be_is_refused_before_there_is_a_run(model, said, tmp_path, capsys):
    changes = {f"model__{name}": value for name, value in model.items()}
    assert main(["run", str(write_job(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()
