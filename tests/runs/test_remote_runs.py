"""A run in a bucket can be read from any machine, like a run on the local disk."""

import json
import shutil

import pytest
from safetensors.torch import save

from pipeline.cli import main
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.stores import open_store
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.light_run import light_run, save_checkpoint
from tests.support.states import someone

ANSWER = ("--prompt", "Return a", "--max-tokens", "4", "--seed", "1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory on a machine without copies of runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(here, s3, monkeypatch):
    """A run in a bucket, with an untrained model as its newest checkpoint."""
    s3.use(monkeypatch)
    run = light_run(open_store(f"s3://{s3.bucket()}/runs"))
    tokenizer = tiny_tokenizer()
    tokenizer.save(here / "tokenizer.json")
    model = tiny_model(tokenizer.vocab_size)
    texts = {
        "config.json": json.dumps(model.config.to_dict()),
        "tokenizer.json": (here / "tokenizer.json").read_text(),
    }
    claim = claim_run(run, Owner.me())
    save_checkpoint(claim, "sft", 9, "digest", model=save(model.state_dict()), texts=texts)
    claim.release()
    shutil.rmtree(here / "cache")
    return run


@pytest.fixture
def pion(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def command(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return command


def url(run):
    return f"{run.store.url}/{run.name}"


def test_status_needs_nothing_but_the_bucket(run, pion, here):
    code, out, _ = pion("status", url(run))
    assert code == 0
    assert f"demo in {run.store.url}" in out
    assert "newest checkpoint: sft step 9" in out
    assert "owner: nobody (released)" in out
    assert not (here / "cache").exists()


def test_checkpoints_are_verified_by_downloading_them_to_a_place_that_is_gone_after(
    run, pion, here
):
    rows = json.loads(pion("checkpoints", url(run), "--json")[1])
    steps = [(row["stage"], row["step"]) for row in rows]
    assert steps == [("sft", 9), ("sft", 5), ("pretrain", 20), ("pretrain", 10)]
    assert pion("checkpoints", url(run), "--verify")[0] == 0
    key = run.key("checkpoints/pretrain/20-2/model.safetensors")
    run.store.write(key, b"weights of pretrain 2O")
    code, out, _ = pion("checkpoints", url(run), "--verify", "--json")
    assert code == 1
    assert [row["verified"] for row in json.loads(out)] == [True, True, False, True]
    assert [path for path in (here / "cache").rglob("*") if path.is_file()] == []


def test_a_model_in_a_bucket_can_be_used_and_comes_down_once_without_its_optimizer(run, pion, here):
    command = ["generate", f"{url(run)}@9", *ANSWER]
    code, first, err = pion(*command)
    assert code == 0, err
    assert first.startswith("Return a")
    assert list((here / "cache").rglob("optimizer.safetensors")) == []
    (weights,) = (here / "cache").rglob("model.safetensors")
    written = weights.stat().st_mtime_ns
    assert pion(*command)[1] == first
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(bytes(weights.stat().st_size))  # a damaged copy is not used
    assert pion(*command)[1] == first


def test_a_checkpoint_of_a_bucket_can_be_named(run, pion):
    code, _, err = pion("generate", f"{url(run)}@7", "--prompt", "a")
    assert code == 2
    assert "its checkpoints are: sft 9, sft 5, pretrain 20, pretrain 10" in err
    code, _, err = pion("generate", f"{url(run)}@20", "--prompt", "a")
    assert code == 2  # its tensors are not real
    assert "no config.json" in err


def test_a_model_whose_files_are_damaged_in_the_bucket_is_refused(run, pion):
    key = run.key("checkpoints/sft/9-3/model.safetensors")
    run.store.write(key, run.store.read(key)[:-1])
    code, _, err = pion("generate", f"{url(run)}@9", *ANSWER)
    assert code == 2
    assert "model.safetensors has" in err
    assert f"pion checkpoints {url(run)} --verify" in err


def test_the_report_is_written_here_and_into_the_bucket(run, pion, here):
    code, out, err = pion("report", url(run))
    assert code == 0, err
    assert out == "demo-report.html\n"
    page = (here / "demo-report.html").read_bytes()
    assert b"Loss" in page
    assert run.store.read(run.key("report.html")) == page
    assert json.loads(pion("report", url(run), "--json")[1]) == {"report": "demo-report.html"}


def test_a_stop_request_reaches_the_owner_through_the_bucket(run, pion):
    claim = claim_run(run, someone(host="host-a", pid=7))
    code, out, _ = pion("stop", url(run))
    assert code == 0
    assert "pid 7 on host-a" in out
    claim.heartbeat.beat()
    assert claim.heartbeat.stop_request is not None
    assert "asked to stop: pion stop by " in pion("status", url(run))[1]


def test_a_run_is_forked_from_a_bucket_to_the_disk_and_back(run, pion, here):
    assert pion("fork", url(run), "runs/local")[0] == 0
    assert pion("fork", "local", f"{run.store.url}/back")[0] == 0
    assert pion("fork", f"{run.store.url}/back", "again")[0] == 0
    for name in ("local", f"{run.store.url}/back", f"{run.store.url}/again"):
        assert pion("checkpoints", name, "--verify")[0] == 0
    shutil.rmtree(here / "cache")
    code, text, _ = pion("generate", "local@9", *ANSWER)
    assert code == 0
    assert pion("generate", f"{run.store.url}/back@9", *ANSWER)[1] == text


def test_what_is_not_in_the_bucket_is_answered_with_what_is(run, pion):
    for command in ("status", "checkpoints", "report", "stop", "export"):
        folder = ["out"] if command == "export" else []
        code, out, err = pion(command, f"{run.store.url}/dmeo", *folder)
        assert (code, out) == (2, "")
        assert f"no run 'dmeo' in the store {run.store.url}. Runs in {run.store.url}: demo." in err


def test_a_command_that_reads_says_that_a_bucket_does_not_exist(run, pion):
    for command in ("status", "stop", "checkpoints"):
        code, _, err = pion(command, "s3://there-is-none/runs/demo")
        assert code == 1  # as for every failing store in a command without work
        assert "there-is-none" in err
        assert "Traceback" not in err


def test_a_store_without_heartbeats_says_when_it_last_heard_of_a_run(here, monkeypatch):
    from pipeline.commands.status import _owner_in_words
    from pipeline.state.status.run_status import run_status
    from pipeline.state.stores import FileStore

    monkeypatch.setattr(FileStore, "commits", True)
    local = light_run(FileStore(here / "runs"))
    claim = claim_run(local, someone(host="host-a"))
    at = claim.head.claims[0].at
    words = _owner_in_words(run_status(local, claim.head, at + 90))
    assert "no heartbeat on this store; last commit 1 min 30 s ago" in words
