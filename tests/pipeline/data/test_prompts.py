"""Prompts from the files of others to rows and back, and what is said about them."""

import json
from dataclasses import replace
from functools import partial

import pytest

from pion.data.chat.conversation import Turn
from pion.data.documents import python_docs, python_qa
from pion.data.documents.file_to_documents import Record
from pion.data.documents.python_qa import Dialogue
from pion.data.shards import Manifest
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.rewards.answered import Answered
from pipeline.data import prompts, sources
from pipeline.data.fingerprint import rows_fingerprint
from pipeline.data.judge import require_judgeable
from pipeline.data.prepared import SPLITS
from pipeline.data.prompts import PromptRows
from pipeline.data.sources import Input, conversations, find_input
from pipeline.job import HubDataset
from pipeline.job.digest import digest_job
from pipeline.stages.prepare import open_data
from tests.support.corpora import files_of, job_by_file, model_of, prepare, sentences
from tests.support.interrupted import ends_at
from tests.support.preference_files import write_jsonl


def asked(number, **more):
    return {"prompt": sentences(number, 1), "answer": number, "id": f"no. {number}", **more}


def prompt_job(folder, *sources, sft=None, **reinforce):
    usual = {"max_tokens": 16, "held_out": 0.2, "rewards": ["number"], "seq_len": 128}
    section = usual | {"steps": 2, "global_batch": 4, "sources": list(sources)} | reinforce
    return job_by_file(folder, model=model_of(400) | {"seq_len": 128}, reinforce=section, sft=sft)


def of(folder, records, **reinforce):
    """Return a job on these records."""
    write_jsonl(folder / "rl.jsonl", records)
    return prompt_job(folder, {"kind": "jsonl", "path": "rl.jsonl"}, **reinforce)


def prepared(job, folder):
    """Prepare the prompts; return the report of the first source."""
    prepare(job, folder, part="reinforce")
    return open_data(folder).report["sources"][0]


def opened(folder, split):
    data = open_data(folder)
    return PromptRows.of(data, data.stream(split, seed=1, window=2), split)


def rows_of(folder, split):
    """Return what rewards get of each row of one epoch."""
    rows = opened(folder, split)
    return [rows.question(n) for n in range(rows.stream.total_rows)]


def test_each_prompt_is_a_row_on_one_side_and_its_record_is_kept(tmp_path):
    records = [asked(n) for n in range(200)] + [asked(n, id=None) for n in range(50)]
    del records[0]["answer"]
    report = prepared(of(tmp_path, records), tmp_path / "data")
    train, held_out = (rows_of(tmp_path / "data", split) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (report["train_rows"], report["held_out_rows"])
    assert 25 < len(held_out) < 80
    assert not {row[0] for row in train} & {row[0] for row in held_out}
    expected = [(one["prompt"], str(one.get("answer", None)), one) for one in records]
    found = [(prompt, str(answer), record) for prompt, answer, record, _ in train + held_out]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert report["prompts"] == {"too_long": 0, "unanswered": 1}
    said = "the question is in prompt, the answer in answer (249 of 250 records)"
    assert said in report["remarks"]
    assert report["warnings"] == [
        "50 of 250 prompts are the same as another one",
        "1 of 250 prompts have no answer, so no reward can compare with one",
    ]


def test_rows_of_two_sources_are_those_of_the_stream_and_damaged_records_are_refused(tmp_path):
    found = []
    for name, numbers, weight in (("a", range(150), 1), ("b", range(1000, 1120), 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", map(asked, numbers))
        found.append({"kind": "jsonl", "path": f"{name}.jsonl", "weight": weight})
    prepared(prompt_job(tmp_path, *found), tmp_path / "data")
    rows = opened(tmp_path / "data", "train")
    decode = partial(Tokenizer.from_file(tmp_path / "tokenizer.json").decode, specials=True)
    of_second, count = 0, 2 * rows.stream.total_rows
    for number in range(count):
        ids, row = rows.ids(number), rows.stream.row(number)
        assert ids == row.tokens[: len(ids)].tolist()
        assert (row.targets == -100).all()
        prompt, answer, record, _ = rows.question(number)
        assert decode(ids) == f"<|user|>\n{prompt}\n<|assistant|>\n"
        assert record == asked(int(answer))
        of_second += int(answer) >= 1000
    assert abs(of_second / count - 0.75) < 0.05
    manifest = Manifest.read(tmp_path / "data/1/train/manifest.json")
    assert replace(manifest, records="0" * 64).fingerprint != manifest.fingerprint
    path = tmp_path / "data/1/train" / prompts.RECORDS
    content = path.read_bytes()
    for damaged in (content.replace(b"no. 1", b"no. 2", 1), content[:-9], b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"records\.jsonl is missing, or is not.*--redo prepare"):
            opened(tmp_path / "data", "train")


def test_both_splits_have_room_for_the_longest_prompt_of_either(tmp_path):
    prepared(
        of(tmp_path, [*map(asked, range(60)), asked(1) | {"prompt": sentences(1, 3)}]),
        tmp_path / "data",
    )
    both = [opened(tmp_path / "data", split) for split in SPLITS]
    longest = [max(len(r.ids(n)) for n in range(r.stream.total_rows)) for r in both]
    assert longest[0] != longest[1]
    assert [rows.longest for rows in both] == 2 * [max(longest)]


def test_long_prompts_are_left_out_and_what_to_change_is_said(tmp_path):
    records = [*(asked(n) for n in range(60)), {"prompt": sentences(1, 9)}]
    report = prepared(of(tmp_path, records, seq_len=80), tmp_path / "data")
    why = "61 prompts are left out: they have more than 64 tokens. Raise reinforce.seq_len (now 80)"
    assert report["warnings"] == [f"1 of {why} or lower reinforce.max_tokens"]
    with pytest.raises(BadInput, match=r"61 of 61 .*more than 2 tokens\. Lower.*Nothing was"):
        prepared(of(tmp_path, records, max_tokens=126), tmp_path / "none")


def test_a_reward_that_compares_is_refused_if_no_record_has_a_right_answer(tmp_path):
    job = of(tmp_path, [], rewards=[{"kind": "regex", "pattern": "."}, "exact"])
    known, unknown = (Answered("a", "", answer, {}, True, 1) for answer in ("b", None))
    require_judgeable(job, [unknown, known])
    with pytest.raises(BadInput, match=r"reinforce\.rewards\.1: there is no answer to compare"):
        require_judgeable(job, [unknown, unknown])


DEEP = json.loads("[" * 63 + "]" * 63)
TOO_FEW = [
    (map(asked, range(40)), r"one batch: they fill \d+ rows, but reinforce\.global_batch needs 64"),
    ([asked(0)], r"too few prompts: no prompt is .*reinforce\.held_out"),
    ([asked(0), asked(1, deep=DEEP)], r"\.jsonl:2 is not valid JSON .*64 levels.*Correct or"),
]


@pytest.mark.parametrize(("records", "why"), TOO_FEW)
def test_too_few_prompts_and_records_that_can_not_be_kept_are_refused(tmp_path, records, why):
    with pytest.raises(BadInput, match=why):
        prepared(of(tmp_path, records, global_batch=64), tmp_path / "data")


def test_after_an_interruption_the_files_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BUFFER", 16)
    job = of(tmp_path, map(asked, range(400)))
    prepared(job, tmp_path / "whole")
    for call in (15, 35):
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.data.splits.mark", ends_at(call))
            with pytest.raises(KeyboardInterrupt):
                prepare(job, tmp_path / "broken", part="reinforce")
        assert not (tmp_path / "broken/dataset.json").exists()
    prepared(job, tmp_path / "broken")
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_all_columns_of_a_table_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([asked(n, at=1.5, no=None) for n in range(60)])
    days = pyarrow.array([n * 86_400_000 for n in range(60)], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(table.append_column("day", days), tmp_path / "rl.parquet")
    prepared(prompt_job(tmp_path, {"kind": "parquet", "path": "rl.parquet"}), tmp_path / "data")
    _, answer, record, _ = rows_of(tmp_path / "data", "train")[0]
    assert record.pop("day").startswith("1970-0")
    assert record == asked(int(answer), at=1.5, no=None)


def test_questions_about_python_are_held_out_by_their_file(tmp_path, monkeypatch):
    more = Turn("assistant", "A thing."), Turn("user", "And?"), Turn("assistant", "That.")
    made = [Dialogue(f"lib/{n}.py", (Turn("user", f"What is f{n}?"), *more)) for n in range(80)]
    monkeypatch.setattr(python_qa, "dialogues", lambda: iter(made))
    job = prompt_job(tmp_path, {"kind": "python-docs-qa"}, rewards=["exact"])
    prepared(job, tmp_path / "data")
    found = rows_of(tmp_path / "data", "held_out")
    named = [n for n in range(80) if python_docs.is_held_out(f"lib/{n}.py", job.data.held_out)]
    assert {prompt[0]["content"] for prompt, *_ in found} == {f"What is f{n}?" for n in named}
    assert {(len(p), answer, len(r["messages"])) for p, answer, r, _ in found} == {(3, "That.", 4)}


def test_prompts_that_fine_tuning_learns_from_are_held_out_with_its_conversations(tmp_path):
    talks = [{"question": sentences(n, 1), "answer": str(n)} for n in range(200)]
    write_jsonl(tmp_path / "rl.jsonl", talks)
    source = {"kind": "jsonl", "path": "rl.jsonl"}
    sft = {"sources": [source | {"weight": 2}], "held_out": 0.3, "steps": 2, "global_batch": 4}
    job = prompt_job(tmp_path, source, sft=sft)
    alone = job.model_copy(update={"sft": None})
    found = find_input(job, job.reinforce.sources[0], "reinforce.sources.0")
    learned = {
        talk.conversation.messages[0]["content"]
        for held_out, talk in conversations(job, found, own=True)
        if not held_out
    }
    prepared(job, tmp_path / "data")
    prompts_held_out = {prompt for prompt, *_ in rows_of(tmp_path / "data", "held_out")}
    assert len(prompts_held_out) > 25
    assert not learned & prompts_held_out
    prints = [rows_fingerprint(one, "reinforce", found, tmp_path / "data") for one in (job, alone)]
    assert prints[0] != prints[1]


def test_of_the_hub_only_the_first_records_must_be_usable(tmp_path, monkeypatch):
    records = [asked(n) if n != 150 else {"text": "?"} for n in range(200)]
    from_hub = [Record(value, f"user/rl row {n}") for n, value in enumerate(records)]
    monkeypatch.setattr(sources, "records", lambda *_: iter(from_hub))
    monkeypatch.setattr("pipeline.stages.prepare.find_input", lambda _, *a: Input(*a[:2], "x"))
    job = prompt_job(tmp_path, HubDataset(kind="hub", repo="user/rl").model_dump())
    with pytest.raises(BadInput, match="row 150: not a prompt"):
        prepared(job, tmp_path / "data")
    monkeypatch.setattr(sources, "SAMPLED", 100)
    report = prepared(job, tmp_path / "data")
    assert report["train_refused"] == len(report["refusals"]) == 1


@pytest.mark.parametrize("changed", [{"max_tokens": 15}, {"seq_len": 81}, {"held_out": 0.3}])
def test_what_decides_rows_is_in_the_digest_of_the_data(tmp_path, changed):
    jobs = [of(tmp_path, [], **more) for more in ({}, {"lr": 1e-6}, changed)]
    before, same, after = (digest_job(job).data["reinforce"] for job in jobs)
    assert before == same != after


def test_a_table_is_answered_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "sums.csv").write_text("question,answer\n1 + 1?,2\n")
    job = prompt_job(tmp_path, {"kind": "jsonl", "path": "sums.csv"})
    with pytest.raises(BadInput, match=r"0\.path: .*sums\.csv is a table\. `pion new sums\.csv`"):
        prepared(job, tmp_path / "data")
