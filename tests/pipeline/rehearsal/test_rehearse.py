"""What the data of a job give is known in advance: exactly if the job is small, and else nearly."""

import gzip
import json
import math
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

from pion.errors import BadInput
from pipeline.data.sources import SAMPLED
from pipeline.rehearsal.rehearse import expect_rows, rehearse
from pipeline.rent.plan.estimate import estimate
from pipeline.stages.prepare import prepare_part
from tests.paths import REPOSITORY
from tests.pipeline.rehearsal.jobs import TRAINED, chat_job, pair_job, rewrite
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.hub_server import hub_server


def prepared_rows(job, part, folder, tokenizer=None):
    return prepare_part(job, part, folder / part, lambda message: None, tokenizer).report


def refusal(job, stage, *words):
    """Check that the data of a stage is refused in these words, and that nothing was written."""
    said = str(rehearse(job).failed[stage])
    assert all(word in said for word in words), said
    assert "pion-rehearsal" not in said
    return said


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": {"train": {"vocab_size": 320}}}])
def test_the_rows_are_those_that_the_run_will_have(tmp_path, tokenizer):
    job = chat_job(tmp_path, **tokenizer)
    rehearsed = rehearse(job)
    text = prepared_rows(job, "pretrain", tmp_path)
    chats = prepared_rows(job, "sft", tmp_path, tmp_path / "pretrain/tokenizer.json")
    documents, talks = (rehearsed.stages[stage] for stage in ("pretrain", "sft"))
    assert (documents.exact, talks.exact) == (True, True)
    assert (documents.rows, talks.rows) == ((text["train_rows"],), (chats["train_rows"],))
    assert documents.items == text["documents"]
    assert talks.steps == job.section("sft").total_steps == -(-2 * chats["train_rows"] // 4)
    assert (talks.passes, talks.tokens) == (2, 4 * talks.steps * job.seq_len("sft"))
    assert documents.passes == documents.steps * 4 / text["train_rows"]
    assert documents.tokens == 4 * documents.steps * 32 == job.trained_tokens("pretrain")
    assert expect_rows(job) is None
    assert not (tmp_path / "runs").exists()


def write_text(folder, how):
    """Write 2 MB of text in other files; return their source."""
    numbers = range(60_000)
    texts = (f"{n * n % 977} mice ran {n % 89} times after the {n % 97} cats.\n\n" for n in numbers)
    text = "".join(texts)
    lines = [json.dumps({"text": one}) + "\n" for one in text.split("\n\n")]
    if how == "one file":
        (folder / "a.txt").write_text(text)
        return {"kind": "text", "path": "a.txt", "split": "paragraph"}
    if how == "many files, packed":
        (folder / "many").mkdir()
        for n in range(40):
            part = "".join(lines[n * 1500 : (n + 1) * 1500])
            (folder / f"many/{n}.jsonl.gz").write_bytes(gzip.compress(part.encode()))
        return {"kind": "jsonl", "path": "many"}
    texts = [json.loads(line)["text"] for line in lines]
    if how == "short texts first":
        texts = texts[:20_000] + [" ".join(texts[n:20_000:20]) for n in range(20)]
    table, path = pyarrow.table({"text": texts}), folder / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=9999, compression="none")
    return {"kind": "parquet", "path": "a.parquet"}


# The share of a larger vocabulary was measured on English, and this text is mostly numbers.
@pytest.mark.parametrize(("vocabulary", "near"), [(512, 0.05), (4096, 0.3)])
@pytest.mark.parametrize("how", ["one file", "many files, packed", "parquet", "short texts first"])
def test_of_large_text_rows_are_estimated_from_a_head_by_the_jobs_own_readers(
    tmp_path, monkeypatch, how, vocabulary, near
):
    source = write_text(tmp_path, how)
    monkeypatch.setattr("pipeline.rehearsal.head.TEXT_BYTES", (300_000, 200_000))
    changes = {"data__held_out": 0.001, "model__vocab_size": vocabulary, "sft": None}
    train = {"train": {"vocab_size": vocabulary}}
    job = chat_job(tmp_path, **changes, tokenizer=train, data__sources=[source])
    head = rehearse(job).stages["pretrain"]
    exact = prepared_rows(job, "pretrain", tmp_path)
    assert not head.exact
    if how == "short texts first":  # then only the bytes say how much is behind them
        near = max(near, 0.1)
    else:
        assert head.items == pytest.approx(exact["documents"], rel=0.05)
    assert head.all_rows == pytest.approx(exact["train_rows"], rel=near)


def test_a_mistake_in_a_head_is_named_with_the_jobs_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.rehearsal.head.RECORD_BYTES", (1000, 9000))
    job = chat_job(tmp_path)
    assert not rehearse(job).stages["sft"].exact
    rewrite(tmp_path / "talks.jsonl", lambda n, line: line if n != 7 else {"messages": "none"})
    refusal(job, "sft", f"{tmp_path / 'talks.jsonl'}:8")


def test_who_has_less_time_reads_less_of_each_source(tmp_path):
    job = chat_job(tmp_path)
    whole, less = (rehearse(job, ["sft"], most).stages["sft"] for most in (math.inf, 1000))
    assert (whole.exact, less.exact) == (True, False)
    assert whole.fits % 32 == 0 < whole.fits <= 2 * less.fits


def test_tokenized_files_are_counted_by_their_headers_next_to_text(tmp_path):
    job = chat_job(tmp_path)
    alone = rehearse(job).rows_of("pretrain")
    shard = tmp_path / "shard.npy"
    np.save(shard, np.zeros((50, 32), dtype=np.uint16))
    sources = [{"kind": "npy", "path": "shard.npy"}, *(s.model_dump() for s in job.data.sources)]
    job = chat_job(tmp_path, data__sources=sources)
    assert rehearse(job).rows_of("pretrain") == (49, *alone)
    only = {"data__sources": sources[:1], "sft": None}
    refusal(chat_job(tmp_path, **only, pretrain__global_batch=50), "pretrain", "it has 49 rows")
    np.save(shard, np.full((50, 32), 5, dtype=np.uint16))
    job = chat_job(tmp_path, **only, data__documents=True)
    refusal(job, "pretrain", "data.sources.0", "can't tell where a document begins")
    (tmp_path / "text/one.txt").write_bytes(b"\xff\xfe")
    refusal(chat_job(tmp_path, data__sources=sources), "pretrain", "UTF-16")


def test_too_few_rows_for_a_batch_are_refused_with_a_batch_that_will_do(tmp_path):
    said = refusal(chat_job(tmp_path, sft__global_batch=999), "sft", "needs 999")
    batch = int(re.findall(r"sft.global_batch=(\d+)", said)[0])
    assert rehearse(chat_job(tmp_path, sft__global_batch=batch)).failed == {}
    with pytest.raises(BadInput, match="needs 999"):
        expect_rows(chat_job(tmp_path, sft__global_batch=999))
    refusal(pair_job(tmp_path, global_batch=1000), "prefer", "prefer.global_batch needs 1,000")
    refusal(chat_job(tmp_path, pretrain__global_batch=9999), "pretrain", "smaller than one batch")


def test_pairs_that_can_not_be_learned_are_refused_also_before_there_is_a_tokenizer(tmp_path):
    python_docs = {"data__sources": [{"kind": "python-docs"}]}
    for changes in ({}, TRAINED, TRAINED | python_docs):
        (tmp_path / "pairs.jsonl").unlink(missing_ok=True)
        job, pairs = pair_job(tmp_path, changes), tmp_path / "pairs.jsonl"
        rehearsed = rehearse(job)
        assert rehearsed.failed == {}
        found = rehearsed.stages["prefer"]
        assert found.exact == ("data__sources" not in changes)
        assert 90 <= found.items < 120  # the others are held out
        rewrite(pairs, lambda n, line: line | {"score_chosen": 1, "score_rejected": 2})
        refusal(job, "prefer", "chosen and rejected seem to be swapped")
        same = {"chosen": "a", "rejected": "a"}
        rewrite(pairs, lambda n, line, same=same: {"prompt": line["prompt"], **same})
        refusal(job, "prefer", "120 of 120 pairs are left out")
        rewrite(pairs, lambda n, line: {"prompt": line["prompt"]})
        refusal(job, "prefer", "pairs.jsonl:1: not a pref")


def test_only_a_run_and_its_rehearsal_prepare_data():
    files = (REPOSITORY / "pipeline").rglob("*.py")
    callers = {f"{p.parent.name}/{p.name}" for p in files if "prepare_part(" in p.read_text()}
    assert callers == {"stages/prepare.py", "run/prepare.py", "rehearsal/rehearse.py"}


def test_a_rehearsal_needs_no_torch(tmp_path):
    """`pion check` imports torch while the data are rehearsed. Two threads must not import it."""
    pair_job(tmp_path, TRAINED)
    code = (
        "import sys; sys.modules['torch'] = None; from pipeline.job.file import load_job; "
        "from pipeline.rent.check.data import check_rows; "
        f"print([row.ok for row in check_rows(load_job('{tmp_path}/job.yaml'))])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "True" in answer.stdout, answer.stderr
    assert "False" not in answer.stdout


def test_what_is_known_in_advance_has_one_place_each():
    """Only these lines count: others ask a stage's section, the job, or what was rehearsed."""
    place = {
        "self._rows = rows": {"job/train_sections.py"},
        ".know_rows(": {
            "new/proposal.py",
            "rehearsal/rehearse.py",
            "state/status/recorded_job.py",
            "training/setup.py",
        },
        "total_steps * section.rows_of_step(": {"job/job_fields.py"},
        "WAYS[part].show": {"rehearsal/rehearse.py"},
    }
    texts = {file: file.read_text() for file in (REPOSITORY / "pipeline").rglob("*.py")}
    for words, files in place.items():
        having = {file for file, text in texts.items() if words in text}
        assert {str(file.relative_to(REPOSITORY / "pipeline")) for file in having} == files, words


def test_a_vocabulary_that_can_not_be_trained_leaves_the_other_stages_alone(tmp_path):
    job = chat_job(tmp_path, **TRAINED, model__vocab_size=260)
    rehearsed = rehearse(job)
    assert list(rehearsed.failed) == ["pretrain"]
    assert rehearsed.stages == {}


def test_of_a_data_set_on_the_hub_only_the_first_records_are_read(tmp_path, monkeypatch):
    turn = {"role": "assistant", "content": "b"}
    lines = "".join(
        json.dumps({"messages": [{"role": "user", "content": str(n)}, turn]}) + "\n"
        for n in range(2 * SAMPLED)
    )
    with hub_server() as hub:
        hub.add_repo("some/talks", "dataset", {"talks.jsonl": lines.encode()})
        hub.use(monkeypatch, tmp_path / "hf")
        job = chat_job(tmp_path, sft__sources=[{"kind": "hub", "repo": "some/talks"}])
        found = rehearse(job, ["sft"]).stages["sft"]
        assert f"of the first {SAMPLED:,} conversations" in expect_rows(
            chat_job(tmp_path, sft__sources=[{"kind": "hub", "repo": "some/talks"}])
        )
    assert found.of_hub
    assert 0.7 * SAMPLED < found.items < SAMPLED  # the others are held out


# ---------------------------------------------------------------- how long a job takes


def test_the_steps_and_the_reference_of_pairs_are_known_in_advance(tmp_path):
    job = pair_job(tmp_path, epochs=2)
    assert expect_rows(job) is None
    rows = job.section("prefer").rows
    assert job.section("prefer").total_steps == -(-2 * rows // 4)
    job = pair_job(tmp_path, steps=8)
    assert expect_rows(job) is None
    _, stage = estimate(job, offer("A40")).stages
    assert stage.reference_tokens == rows * 320 // 3
    assert stage.reference_seconds == stage.reference_tokens / stage.tokens_per_second
    trained = 8 * 4 * 320 / stage.tokens_per_second
    assert stage.seconds == pytest.approx(trained + stage.reference_seconds)


def test_what_can_not_be_counted_is_said_or_not_needed(tmp_path):
    with pytest.raises(BadInput, match=r"^prefer\.warmup_steps: 500 must be below the"):
        expect_rows(pair_job(tmp_path, warmup_steps=500))
    job, without = pair_job(tmp_path, steps=8), pair_job(tmp_path, steps=8, loss="simpo")
    (tmp_path / "pairs.jsonl").unlink()
    assert expect_rows(without) is None
    assert expect_rows(job).startswith("the reference pass of prefer is left out: prefer.sources.0")
    docs = [{"kind": "python-docs"}]
    job = chat_job(
        tmp_path, **TRAINED, data__sources=docs, sft__sources=[{"kind": "python-docs-qa"}]
    )
    assert "the steps of sft follow from its rows, which are not known" in expect_rows(job)
