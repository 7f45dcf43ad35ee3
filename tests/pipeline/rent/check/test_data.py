"""What a job's data give is shown before anything is rented, with what cleaning leaves out of them
and what will disappoint."""

import json
import re

import pytest

from pion.errors import BadInput
from pipeline.job.train_sections import FEWEST_STEPS
from pipeline.rehearsal.rehearse import rehearse
from pipeline.rent.check.data import check_clean, check_rows
from pipeline.rent.check.inputs import local_inputs
from pipeline.rent.check.job import check_model
from pipeline.stages.prepare import prepare_part
from tests.pipeline.rehearsal.jobs import chat_job, pair_job
from tests.support.core_bundle import pinned, write_bundle


def rows_of(job):
    """Return the rows that `pion check` shows of the data, by their names."""
    return {row.name: row for row in check_rows(job)}


def test_rows_passes_and_what_is_lost_are_stated(tmp_path):
    job = chat_job(tmp_path)
    long = {"role": "assistant", "content": "the cat sat " * 100}
    turns = [{"role": "user", "content": "a"}, long]
    unanswered = [{"role": "user", "content": "the cat sat " * 100}, long]
    with (tmp_path / "talks.jsonl").open("a") as file:
        for messages in (turns, turns, unanswered):
            file.write(json.dumps({"messages": messages}) + "\n")
    rows = rows_of(job)
    assert all(row.ok for row in rows.values())
    assert re.match(r"[\d,]+ documents in [\d,]+ rows of 32 tokens; ", rows["documents"].words)
    said = rows["conversations"].words
    assert "2 passes in " in said
    assert "; 1 of 303 conversations are dropped, because no answer begins within" in said
    assert "sources.0" not in said
    twice = chat_job(tmp_path, sft__sources=2 * [job.sft.sources[0].model_dump()])
    (number,) = rehearse(job, ["sft"]).rows_of("sft")
    assert f"; sft.sources.1: {number:,} rows; " in rows_of(twice)["conversations"].words
    first = rows["the first"].words
    talk = json.loads((tmp_path / "talks.jsonl").read_text().splitlines()[0])["conversations"]
    question, answer = (re.escape(turn["value"]) for turn in talk)
    shown = rf"<\|user\|>\n{question}\n<\|assistant\|>\n⟦{answer}\n<\|endoftext\|>⟧$"
    assert re.search(shown, first)


def test_what_is_not_read_and_what_is_lost_are_rows_of_their_own(tmp_path):
    job = chat_job(tmp_path)
    thought = {"role": "assistant", "content": "b", "reasoning_content": "c"}
    lines = [
        {"messages": [{"role": "user", "content": str(number)}, thought], **more}
        for number in range(40)
        for more in ({"id": 1, "weight": 2}, {"tools": [{"name": "f"}]})
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    row, *warnings = [row for row in check_rows(job) if row.name == "conversations"]
    assert "not read: 'id' (40 of 80 records)" in row.words
    said = [row.words for row in warnings if row.ok is None]
    assert said[0] == "not read: 'weight' (40 of 80 records)"
    assert said[1].startswith("the thoughts of 80 of 80 answers that have some are not learned")
    assert said[2].startswith("the tools of 40 conversations, or calls and results, are not in")
    notes = []
    prepare_part(job, "sft", tmp_path / "sft", lambda m: notes.append(getattr(m, "text", "")))
    assert "warning: talks.jsonl: not read: 'weight' (40 of 80 records)" in notes


STEPS = {"sft__epochs": None, "sft__steps": 100_000}
RATES = {"lr": 5e-5, "min_lr": 5e-6, "lora": {}, "epochs": 9}


@pytest.mark.parametrize(
    ("make", "changes", "name", "expected"),
    [
        (chat_job, {"sft__epochs": 6}, "passes", "6 passes over the same conversations"),
        (chat_job, STEPS, "passes", "passes over the same conversations: beyond 5, a model rather"),
        (chat_job, {"pretrain__steps": 9999}, "passes", "passes over the same documents: beyond 4"),
        (pair_job, {"global_batch": 2}, "batch", "32 to 512 are usual"),
        (pair_job, {"global_batch": 16}, "steps", "change a model little. With prefer.global_batc"),
        (pair_job, RATES, "passes", "9 passes over the same pairs"),
    ],
)
def test_what_will_disappoint_is_warned_of(tmp_path, make, changes, name, expected):
    row = rows_of(make(tmp_path, **changes))[name]
    assert row.ok is None
    assert expected in row.words


def test_few_steps_are_warned_about_with_a_batch_that_makes_more(tmp_path):
    warning = rows_of(chat_job(tmp_path, sft__global_batch=64))["steps"]
    batch, steps = re.findall(r"sft.global_batch=(\d+),.* make (\d+) steps", warning.words)[0]
    assert int(steps) >= FEWEST_STEPS
    job = chat_job(tmp_path, sft__global_batch=int(batch))
    assert "steps" not in rows_of(job)
    assert job.section("sft").total_steps == int(steps)
    # Who gives the steps has chosen them.
    assert "steps" not in rows_of(chat_job(tmp_path, sft__epochs=None, sft__steps=2))


def test_a_stage_that_trains_additions_says_how_many(tmp_path):
    (row,) = check_model(pair_job(tmp_path, lora={"rank": 4}))
    assert row.words.endswith("parameters; prefer trains 3,712 of LoRA instead")


def test_pairs_show_rows_lengths_steps_and_the_first_pair(tmp_path):
    rows = rows_of(pair_job(tmp_path, lr=1e-6, min_lr=1e-7, global_batch=16))
    said = rows["preferences"].words
    assert all(
        w in said for w in ("pairs in", "held out", "1 pass in", "the reference is computed")
    )
    assert "⟦" in rows["the first"].words
    assert {"prompt:", "chosen:", "rejected:"} <= set(rows["the first"].words.split())


def test_of_a_head_the_rows_are_called_estimated_and_a_batch_may_not_be_full(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.rehearsal.head.TEXT_BYTES", (5_000, 4_000))
    rows = rows_of(chat_job(tmp_path, pretrain__global_batch=9999))
    assert rows["documents"].words.startswith("estimated from 1 MB of each large source")
    assert "it is not known whether the corpus fills a batch" in rows["batch"].words


def test_data_that_can_not_be_used_are_refused_by_file_and_line(tmp_path):
    job = chat_job(tmp_path)
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write('{"messages": "none"}\n')
    row = rows_of(job)["conversations"]
    assert row.ok is False
    assert "talks.jsonl:301" in row.words
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- cleaning

CLEAN = {
    "near": 0.7,
    "min_words": 3,
    "max_words": 1000,
    "max_repetition": 0.25,
    "languages": ["English", "German"],
    "decontaminate": ["pack.jsonl", "b.zip"],
}


def test_what_cleaning_leaves_out_and_evaluation_sets_that_stay(case, monkeypatch):
    question = {"context": "Which? ", "choices": ["this", "that"], "answer": 1}
    (case.folder / "pack.jsonl").write_text(json.dumps(question) + "\n")
    pinned(monkeypatch, write_bundle(case.folder / "b.zip"))
    assert not list(check_clean(case.job()))
    job = case.job(data__clean=CLEAN)
    (row,) = check_clean(job)
    assert (row.name, row.ok) == ("data.clean", True)
    assert row.words == (
        "leaves out exact copies, near-copies (similarity 0.7), documents of fewer than 3 words, "
        "documents of more than 1,000 words, documents of which more than 25 % is repeated, "
        "documents that are not in English or German, "
        "text with any of 37 items of 4 evaluation sets"
    )
    keys = {each.key: each.file for each in local_inputs(job, prepared=False)}
    assert keys["data.clean.decontaminate.1"] == (case.folder / "b.zip").resolve()
    assert not any("clean" in each.key for each in local_inputs(job, prepared=True))
    (case.folder / "b.zip").write_text("other")
    with pytest.raises(BadInput, match=r"^data\.clean\.decontaminate\.1: .*b\.zip: expected the"):
        list(check_clean(job))
    _, row = check_clean(case.job(data__clean={}, evaluate__packs=["pack.jsonl"]))
    assert row.ok is None
    assert row.words.startswith("evaluate.packs.0: not in data.clean.decontaminate")
    job = case.job(data__clean={"decontaminate": ["pack.jsonl"]}, evaluate__packs=["./pack.jsonl"])
    assert len(list(check_clean(job))) == 1
