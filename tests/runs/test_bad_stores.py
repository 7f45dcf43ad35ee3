"""A store that can't be used is refused before anything is written: exit code 2, and what to do.
If a store goes down later, the run waits for it."""

import pytest

import pion.formats.verify
from pion.errors import NotDurable, Trouble
from pipeline.console.messages import CheckpointSaved, Note, Phase, StageState
from pipeline.job.file import load_job
from pipeline.run.command import run_job
from pipeline.run.inputs import RunOptions
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import retry
from pipeline.state.stores.retry import Patience
from pipeline.training.context import TrainingContext
from pipeline.training.train_request import Group
from tests.faults.test_bad_days import CutOff
from tests.support.far_store import FarStore
from tests.support.hub_server import READ_TOKEN, USER, hub_server
from tests.support.jobs import SilentDisplay, tiny_job, train_request
from tests.support.s3_server import FaultProxy
from tests.support.states import read
from tests.support.whole_runs import (
    copy_run,
    ends_with,
    events_of,
    kill,
    newest,
    start,
    wait_for,
    write_job,
)


def refusal(folder, store, *overrides):
    """Return what `pion run` says when it refuses to start."""
    output = ends_with(2, start(write_job(folder, store=store, sft=None), *overrides))
    assert "Traceback" not in output
    assert "prepare: starts" not in output
    return output


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://Not_A_Bucket/x", "Not_A_Bucket"),
        ("hf://only-a-user", "hf://user/repo"),
        ("file://relative/path", "needs an absolute path"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_named_with_the_right_form(tmp_path, url, says):
    assert says in refusal(tmp_path, url)


@pytest.mark.usefixtures("s3_store")
def test_a_missing_bucket_is_refused_with_the_command_that_makes_it(tmp_path):
    assert "aws s3 mb s3://no-such-bucket" in refusal(tmp_path, "s3://no-such-bucket/runs")


def test_a_bucket_that_denies_access_is_refused(tmp_path, s3, monkeypatch):
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        proxy.deny("AccessDenied", 403)
        assert "denied" in refusal(tmp_path, f"s3://{s3.bucket()}/runs").lower()


def test_a_store_that_ignores_conditions_is_found_out_and_refused(tmp_path, s3, monkeypatch):
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        proxy.ignored_headers = {"if-match", "if-none-match"}
        bucket = s3.bucket()
        assert "Two machines" in refusal(tmp_path, f"s3://{bucket}/runs")
        listed = s3.client().list_objects_v2(Bucket=bucket)
        assert listed.get("KeyCount") == 0


def test_a_hub_repository_that_is_missing_or_only_readable_is_refused(tmp_path, monkeypatch):
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "hf")
        assert "repos create" in refusal(tmp_path, f"hf://{USER}/nothing")
        hub.add_repo(f"{USER}/state")
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        output = refusal(tmp_path, f"hf://{USER}/state")
        assert "write" in output
        assert READ_TOKEN not in output


def test_a_run_name_no_store_can_hold_is_refused(tmp_path):
    assert "name" in refusal(tmp_path, str(tmp_path / "runs"), "name=a/b")


def test_a_run_of_a_newer_format_is_left_alone(tmp_path, whole):
    copy_run(whole(sft=None), tmp_path)
    head = tmp_path / "runs/tiny/HEAD.json"
    head.write_text(head.read_text().replace('"format": 4', '"format": 8'))
    before = head.read_bytes()
    assert "format version 8" in refusal(tmp_path, str(tmp_path / "runs"))
    assert head.read_bytes() == before


def test_a_checkpoint_of_a_newer_format_is_refused_before_anything_is_written(tmp_path):
    killed = start(write_job(tmp_path, sft=None), "pretrain.steps=4000")
    wait_for(killed, ": saved")
    kill(killed)
    run = tmp_path / "runs/tiny"
    # The newest committed checkpoint: a later one may be only partly uploaded.
    manifest = run / newest(tmp_path).key / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 3'))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    output = refusal(tmp_path, str(tmp_path / "runs"), "pretrain.steps=4000")
    assert "format version 3" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- down at a boundary


class CutOffAt(SilentDisplay):
    """Takes the store away at each of these messages, and brings it back when the run says that it
    tries again: by then, all attempts of a request have failed."""

    def __init__(self, proxy, *moments):
        super().__init__()
        self.proxy, self.moments = proxy, list(moments)

    def say(self, message):
        super().say(message)
        if any(moment(message) for moment in self.moments):
            self.proxy.deny("ServiceUnavailable", 503)
        if isinstance(message, Note) and "Trying again until" in message.text:
            self.proxy.clear()

    def notes(self, text):
        return sum(text in m.text for m in self.messages if isinstance(m, Note))


def last_save(message):
    return isinstance(message, CheckpointSaved) and message.step == 20


def pretrained(message):
    return message == StageState("pretrain", "done")


def sft_built(message):
    return isinstance(message, Phase) and message.name == "sft built"


def first_measure(message):
    return message == Note("evaluate: pretrain model on held-out text")


def start_of_publishing(message):
    return message == StageState("publish", "started")


def model_verified(message):
    return isinstance(message, Note) and "transformers loads the same model" in message.text


@pytest.fixture
def proxy(s3, tmp_path, monkeypatch):
    """A proxy in front of a store. Requests and outages are retried without a pause."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.0)
    monkeypatch.setattr(retry, "FIRST_RETRY_SECONDS", 0.0)
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        yield proxy


def test_an_outage_longer_than_the_retries_costs_no_run_its_life_at_any_boundary(
    tmp_path, s3, proxy, monkeypatch
):
    # Importing transformers takes many seconds and does not use the store.
    monkeypatch.setattr(pion.formats.verify, "verify_export", lambda *arguments: 0.0)
    path = write_job(
        tmp_path,
        store=f"s3://{s3.bucket()}/runs",
        sft=None,
        checkpoint={"linger": 600},
        publish={"to": str(tmp_path / "model")},
    )
    moments = (last_save, first_measure, start_of_publishing, model_verified)
    display = CutOffAt(proxy, *moments)
    assert run_job(load_job(path, []), RunOptions(), display) == 0
    for moment in moments:  # neither a measure nor publishing is repeated
        assert sum(map(moment, display.messages)) == 1, moment.__name__
    assert display.notes("Trying again until") == len(moments)
    assert display.notes("the store can be reached again") == len(moments)


@pytest.mark.soak
def test_nor_between_the_stages_that_are_trained(tmp_path, s3, proxy):
    store = f"s3://{s3.bucket()}/runs"
    linger = {"linger": 600}
    path = write_job(tmp_path, store=store, checkpoint=linger, publish=None)
    display = CutOffAt(proxy, pretrained, sft_built)
    assert run_job(load_job(path, []), RunOptions(), display) == 0
    assert display.notes("Trying again until") == display.notes("can be reached again") == 2
    assert [e["stage"] for e in events_of(store, "training")] == ["pretrain", "sft"]


def test_without_linger_such_an_outage_ends_the_run_with_exit_74(tmp_path, s3, proxy):
    store = f"s3://{s3.bucket()}/runs"
    path = write_job(tmp_path, store=store, sft=None, checkpoint={"linger": 0})
    display = CutOffAt(proxy, last_save)
    with pytest.raises(NotDurable, match="Everything committed before is safe") as ended:
        run_job(load_job(path, []), RunOptions(), display)
    assert ended.value.exit_code == 74
    proxy.clear()
    assert newest(store).step == 20


def test_a_rewind_whose_commit_landed_unheard_is_recorded_once(tmp_path):
    """A second record would count twice against `checkpoint.max_rewinds`."""
    request = train_request(tiny_job(sft=None), tmp_path, store=str(tmp_path / "here"))
    context = TrainingContext(request, Group(), lambda message: None, lambda: False)
    far = CutOff(FarStore(tmp_path / "far"))
    context.run = RunState(far, "tiny")
    context._patience = Patience(60.0, lambda text: None, lambda seconds: far.come_back())
    claim = claim_run(context.run, Owner(**request.owner))
    far.cut = True
    assert context.leave_out("pretrain", Trouble(8, (28, 32), "loss nan"), claim) is None
    claim.release()
    context.watchdog.close()
    (rows,) = read(context.run).skipped["pretrain"]
    assert (rows.first, rows.stop) == (28, 32)
    rewound = [event for event in read_events(far, "tiny") if event["event"] == "rewound"]
    assert len(rewound) == 1
