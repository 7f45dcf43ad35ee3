"""prepare with conversations: packing, the loss mask, what is held out."""

import json
import re
from collections import Counter
from typing import cast

import pytest

from pion.data.chat.conversation import Turn
from pion.data.chat.messages import Conversation, turns_of
from pion.data.documents import python_docs, python_qa
from pion.data.documents.file_to_documents import Document
from pion.data.documents.python_qa import Dialogue
from pion.data.order import MixtureOrder
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.data.sources import conversations, find_input, texts
from pipeline.job import JsonlFiles
from pipeline.job.digest import digest_job
from pipeline.stages.prepare import TooFewRows, open_data, prepare_part
from tests.support.corpora import job_by_file, make_job, prepare, prepared, sentences, write_corpus
from tests.support.tokenizer_kinds import without_bytes


def openhermes(question, answer):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns}


def sft_job(folder, **source):
    sft = {
        "steps": 10,
        "global_batch": 4,
        "warmup_steps": 1,
        "held_out": 0.1,
        "sources": [{"kind": "jsonl", "path": "chat.jsonl"} | source],
    }
    return job_by_file(folder, sft=sft)


def with_rows(job, seq_len, **fields):
    return job.model_copy(update={"sft": job.sft.model_copy(update={"seq_len": seq_len, **fields})})


def write_chats(path, count=400):
    lines = (json.dumps(openhermes(sentences(i, 1), sentences(i + 999, 1))) for i in range(count))
    path.write_text("\n".join(lines))


def prepared_sft(job, folder):
    prepare(job, folder, part="sft")
    return open_data(folder)


def test_conversations_are_packed_with_their_loss_mask_and_none_is_lost(tmp_path):
    write_chats(tmp_path / "chat.jsonl")
    data = prepared_sft(with_rows(sft_job(tmp_path), 128), tmp_path / "data")
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    stream = data.stream("train", seed=1, window=8)
    answers = set()
    for i in range(stream.total_rows):
        row = stream.row(i)
        for document in range(row.documents.max() + 1):
            targets = row.targets[(row.documents == document) & (row.targets >= 0)]
            assert targets[-1] == tokenizer.end_of_text
            answers.add(tokenizer.decode(targets).strip())
    held_out = data.report["sources"][0]["held_out_conversations"]
    assert 20 <= held_out <= 70
    assert len(answers & {sentences(i + 999, 1) for i in range(400)}) == 400 - held_out


def test_sft_uses_the_tokenizer_of_pretraining(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    write_chats(tmp_path / "chat.jsonl")
    sft = {"steps": 10, "global_batch": 4, "warmup_steps": 1}
    sft |= {"held_out": 0.1, "sources": [{"kind": "jsonl", "path": "chat.jsonl"}]}
    job = make_job(tmp_path, sft=sft)
    pretrain = prepared(job, tmp_path / "one")
    prepare_part(job, "sft", tmp_path / "two", lambda message: None, pretrain.tokenizer_path)
    kept = open_data(tmp_path / "two").tokenizer_path.read_bytes()
    assert kept == pretrain.tokenizer_path.read_bytes()


def test_the_standard_library_is_held_out_by_file_in_both_parts(tmp_path, monkeypatch):
    names = [f"file{n}.py" for n in range(40)]
    talk = Turn("user", "Why?"), Turn("assistant", "So.")
    monkeypatch.setattr(python_docs, "documents", lambda code: [Document(n, n) for n in names])
    monkeypatch.setattr(python_qa, "dialogues", lambda: [Dialogue(n, talk) for n in names])
    sft = {"steps": 10, "global_batch": 4, "warmup_steps": 1, "held_out": 0.3}
    job = make_job(
        tmp_path,
        data={"held_out": 0.1, "sources": [{"kind": "python-docs"}]},
        sft=sft | {"sources": [{"kind": "python-docs-qa"}]},
    )
    docs = find_input(job, job.data.sources[0], "data.sources.0")
    questions = find_input(job, job.sft.sources[0], "sft.sources.0")
    expected = [python_docs.is_held_out(name, 0.1) for name in names]
    assert set(expected) == {True, False}
    assert list(texts(job, docs)) == list(zip(expected, names))
    asked = list(conversations(job, questions, own=True))
    assert [held_out for held_out, _ in asked] == expected
    assert turns_of(cast(Conversation, asked[0][1].conversation)) == list(talk)


def test_missing_characters_and_other_names_of_roles_are_said(tmp_path):
    write_chats(tmp_path / "chat.jsonl")
    with (tmp_path / "chat.jsonl").open("a") as file:
        odd = json.dumps(openhermes("Why\x04?", "\x06 so.")).replace("human", "Prompter")
        file.write("\n" + odd)
    job = with_rows(sft_job(tmp_path), 256)
    (tmp_path / "tokenizer.json").write_text(json.dumps(without_bytes()))
    notes = []
    prepare(job, tmp_path / "data", lambda m: notes.append(getattr(m, "text", "")), part="sft")
    assert "chat.jsonl: 2 characters are not in the model's vocabulary" in notes[-2]
    assert "chat.jsonl:401 (U+0004)" in notes[-2]
    assert notes[-1] == "chat.jsonl: roles with other names: 'Prompter' as user"


def write_questions(path, long, short):
    """Write conversations whose question is longer than a row of 64 tokens, and others."""
    questions = [sentences(number, 40) for number in range(long)] + ["Who?"] * short
    lines = [json.dumps(openhermes(text, f"It is {i}.")) for i, text in enumerate(questions)]
    path.write_text("\n".join(lines))


def test_without_an_answer_in_any_row_longer_rows_are_advised_and_are_enough(tmp_path):
    write_questions(tmp_path / "chat.jsonl", long=60, short=0)
    job = sft_job(tmp_path)
    with pytest.raises(TooFewRows, match="no conversation is left to train on") as found:
        prepared_sft(with_rows(job, 64), tmp_path / "short")
    said = re.search(
        r"(\d+) of \1 conversations are dropped.* sft\.seq_len=(\d+)", str(found.value)
    )
    assert said is not None, found.value
    assert "lower" not in str(found.value)
    assert (found.value.split, found.value.fits) == ("train", int(said[2]))
    source = prepared_sft(with_rows(job, int(said[2])), tmp_path / "long").report["sources"][0]
    assert source["train_conversations"] >= 0.95 * int(said[1])


def test_rows_that_are_too_short_for_many_questions_are_warned_of(tmp_path):
    write_questions(tmp_path / "chat.jsonl", long=30, short=60)
    notes = []
    job = with_rows(sft_job(tmp_path), 64)
    prepare(job, tmp_path / "data", lambda m: notes.append(getattr(m, "text", "")), part="sft")
    words = "warning: chat.jsonl: 30 of 90 conversations are dropped, because no answer begins"
    (said,) = (note for note in notes if note.startswith(words))
    with pytest.raises(TooFewRows, match="sft: the conversations are fewer than one") as found:
        prepare(with_rows(job, 64, global_batch=99), tmp_path / "few", part="sft")
    assert str(found.value).endswith(f"{said.removeprefix('warning: chat.jsonl: ')}.")
    assert "or seq_len" not in str(found.value)
    assert f"sft.seq_len={found.value.fits}, " in said


def test_a_held_out_split_without_conversations_says_whether_they_were_too_long(tmp_path):
    (tmp_path / "talks").mkdir()
    write_questions(tmp_path / "talks/train.jsonl", long=0, short=9)
    job = with_rows(sft_job(tmp_path, path="talks"), 64, held_out=0.0001)
    with pytest.raises(BadInput, match=r"held out\. Add conversations, or raise sft\.held_out"):
        prepared_sft(job, tmp_path / "few")
    write_questions(tmp_path / "talks/valid.jsonl", long=5, short=0)
    with pytest.raises(BadInput, match=r"held out\. 5 of 5 conversations are dropped, because no"):
        prepared_sft(job, tmp_path / "long")


def test_sources_without_weights_are_read_equally_often_and_finished_runs_stay_finished(tmp_path):
    write_chats(tmp_path / "chat.jsonl")
    write_chats(tmp_path / "few.jsonl", 30)

    def read(**weight):
        """Return how often a pass reads a row at most, what is said, and the digests."""
        job = with_rows(sft_job(tmp_path), 64)
        job.sft.sources = [
            JsonlFiles(kind="jsonl", path=path, **weight) for path in ("chat.jsonl", "few.jsonl")
        ]
        notes = []
        place = tmp_path / f"data{len(weight)}"
        prepare(job, place, lambda m: notes.append(getattr(m, "text", "")), part="sft")
        data = open_data(place)
        weights = [source.weight for source in data.sources]
        order = MixtureOrder(data.orders("train", 1, 8), weights, 1)
        rows = Counter(order.locate(i) for i in range(order.total_rows))
        often = any("reads sft.sources.1" in note for note in notes)
        return max(rows.values()), often, digest_job(job).stages

    (once, unsaid, digests), (often, said, before) = read(), read(weight=1)
    assert once <= 2 < 5 < often
    assert (unsaid, said) == (False, True)
    # Without weights, finished runs from before have the digest of weights of 1.
    assert digests == before
