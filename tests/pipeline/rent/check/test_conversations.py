"""What a job's conversations give is counted before anything is rented."""

import json
import re

import pytest

from pion.errors import BadInput
from pipeline.rent.check.conversations import check_conversations
from pipeline.rent.plan.counted import FEWEST_STEPS, SAMPLED, count, expect_rows
from pipeline.stages.prepare import prepare_part
from tests.support.finished_run import tiny_tokenizer
from tests.support.hub_server import hub_server
from tests.support.jobs import tiny_job, write_tiny_data


def job_in(folder, **changes):
    """A job that fine-tunes a model with the tokenizer next to it."""
    write_tiny_data(folder)
    tiny_tokenizer().save(folder / "tokenizer.json")
    fields = {
        "tokenizer": {"file": "tokenizer.json"},
        "model__vocab_size": 320,
        "sft__steps": None,
        "sft__epochs": 2,
        "store": str(folder / "runs"),
    }
    job = tiny_job(**(fields | changes))
    job._folder = folder
    return job


def test_the_rows_are_those_that_the_run_will_have(tmp_path):
    job = job_in(tmp_path)
    counted = count(job, "sft")
    report = prepare_part(job, "sft", tmp_path / "sft", lambda message: None).report
    assert counted.rows == report["train_rows"]
    assert counted.whole
    assert expect_rows(job) is None
    assert job.section("sft").total_steps == -(-2 * counted.rows // 4)


def test_the_check_states_rows_passes_and_what_is_lost(tmp_path):
    job = job_in(tmp_path)
    long = {"role": "assistant", "content": "the cat sat " * 100}
    turns = [{"role": "user", "content": "a"}, long]
    unanswered = [{"role": "user", "content": "the cat sat " * 100}, long]
    with (tmp_path / "talks.jsonl").open("a") as file:
        for messages in (turns, turns, unanswered):
            file.write(json.dumps({"messages": messages}) + "\n")
    row, first = check_conversations(job)
    assert row.ok
    assert "2 passes in " in row.words
    assert "; 1 of 303 conversations are dropped, because no answer begins within" in row.words
    assert re.search(r"<\|user\|>\nWhat .*\n<\|assistant\|>\n⟦.*\n<\|endoftext\|>⟧$", first.words)


def test_what_is_not_read_and_what_is_lost_are_rows_of_their_own(tmp_path):
    job = job_in(tmp_path)
    thought = {"role": "assistant", "content": "b", "reasoning_content": "c"}
    lines = [
        {"messages": [{"role": "user", "content": str(number)}, thought], **more}
        for number in range(40)
        for more in ({"id": 1, "weight": 2}, {"tools": [{"name": "f"}]})
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    row, *warnings, _ = check_conversations(job)
    assert "not read: 'id' (40 of 80 records)" in row.words
    said = [row.words for row in warnings if row.name == "conversations" and row.ok is None]
    assert said[0] == "not read: 'weight' (40 of 80 records)"
    assert said[1].startswith("the thoughts of 80 of 80 answers that have some are not learned")
    assert said[2].startswith("the tools of 40 conversations, or calls and results, are not in")
    notes = []
    prepare_part(job, "sft", tmp_path / "sft", lambda m: notes.append(getattr(m, "text", "")))
    assert "warning: talks.jsonl: not read: 'weight' (40 of 80 records)" in notes


def test_many_passes_over_few_conversations_are_warned_about(tmp_path):
    _, warning, _ = check_conversations(job_in(tmp_path, sft__epochs=6))
    assert warning.ok is None
    assert "6 passes over the same conversations" in warning.words
    _, warning, _ = check_conversations(job_in(tmp_path, sft__epochs=None, sft__steps=100_000))
    assert "passes over the same conversations" in warning.words


def test_too_few_conversations_for_a_batch_are_refused_with_a_batch_that_will_do(tmp_path):
    for refused in (check_conversations, expect_rows):
        with pytest.raises(BadInput, match=r"one batch needs 999 \(sft.global_batch\)") as found:
            refused(job_in(tmp_path, sft__global_batch=999))
    batch = int(re.findall(r"sft.global_batch=(\d+)", str(found.value))[0])
    assert all(row.ok for row in check_conversations(job_in(tmp_path, sft__global_batch=batch)))


def test_few_steps_are_warned_about_with_a_batch_that_makes_more(tmp_path):
    _, warning, _ = check_conversations(job_in(tmp_path, sft__global_batch=64))
    assert (warning.name, warning.ok) == ("steps", None)
    batch, steps = re.findall(r"sft.global_batch=(\d+),.* make (\d+) steps", warning.words)[0]
    assert int(steps) >= FEWEST_STEPS
    job = job_in(tmp_path, sft__global_batch=int(batch))
    assert "steps" not in {row.name for row in check_conversations(job)}
    assert job.section("sft").total_steps == int(steps)
    # Who gives the steps has chosen them.
    chosen = job_in(tmp_path, sft__epochs=None, sft__steps=2)
    assert "steps" not in {row.name for row in check_conversations(chosen)}


def test_of_a_data_set_on_the_hub_only_the_first_conversations_are_read(tmp_path, monkeypatch):
    lines = ""
    for number in range(2 * SAMPLED):
        turns = [{"role": "user", "content": str(number)}, {"role": "assistant", "content": "b"}]
        lines += json.dumps({"messages": turns}) + "\n"
    with hub_server() as hub:
        hub.add_repo("some/talks", "dataset", {"talks.jsonl": lines.encode()})
        hub.use(monkeypatch, tmp_path / "hf")
        job = job_in(tmp_path, sft__sources=[{"kind": "hub", "repo": "some/talks"}])
        counted = count(job, "sft")
        uncertain = expect_rows(job)
    assert not counted.whole
    assert 0.7 * SAMPLED < counted.items < SAMPLED  # the others are held out
    assert f"of the first {SAMPLED:,} conversations" in uncertain


def test_conversations_that_can_not_be_used_are_named(tmp_path):
    job = job_in(tmp_path)
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write('{"messages": "none"}\n')
    with pytest.raises(BadInput, match=r"talks.jsonl:301"):
        check_conversations(job)
    assert not (tmp_path / "runs").exists()


def test_without_a_tokenizer_nothing_can_be_counted_yet(tmp_path):
    job = job_in(
        tmp_path,
        tokenizer={"train": {"vocab_size": 320}},
        data__sources=[{"kind": "text", "path": "text"}],
    )
    uncertain = expect_rows(job)
    assert "not known before prepare" in uncertain
