"""A run with everything that a store keeps, written by the real state layer without training."""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import yaml

from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.run.done_and_changed_stages import stage_inputs
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER, Provenance
from pipeline.state.checkpoints.uploader import SaveRequest
from pipeline.state.checkpoints.uploader import save as save_files
from pipeline.state.claim import claim_run
from pipeline.state.head import data_key
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog, MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.shared.find_or_prepare import find_or_prepare
from pipeline.state.shared.folder import complete
from pipeline.state.shared.records import Writer
from pipeline.state.stores import FileStore
from pipeline.state.stores.clock import Clock
from tests.support.jobs import tiny_dict

JOB = tiny_dict(checkpoint__keep={"last": 9})
ROWS = 4  # a step's
LATEST_SET = 100_000_000.0  # a later time is the real one


def save_checkpoint(claim, stage, step, digest, model=b"", texts=None):
    """List a checkpoint; without a `model`, its tensors are not real."""
    save = Provenance(stage, step, claim.epoch, digest, claim.state.clock.now(), ancestor=None)
    files = {"state.json": json.dumps({"step": step, "next_row": ROWS * step, "stage": stage})}
    texts = files | (texts or {})
    request = SaveRequest(claim.store.url, claim.state.key(save.key), None, {}, texts, save)
    memory = {MODEL: model or f"weights of {stage} {step}".encode(), OPTIMIZER: b"moments"}
    entry = save.entry(save_files(claim.store, request, memory).files)
    claim.commit(lambda head: head.with_checkpoint(entry))
    return entry


def write_metrics(claim, stage, first, last):
    """Write a row for each of the steps `first` to `last`, and a "training" event."""
    metrics = MetricsLog(claim.store, claim.state.name, stage, claim.epoch)
    for step in range(first, last + 1):
        rows = [ROWS * (step - 1), ROWS * step]
        metrics.append({"step": step, "loss": 5.0, "rows": rows, "tokens_per_second": 9.0})
    metrics.flush()
    events = EventLog(claim.store, claim.state.name, claim.epoch)
    events.append("training", stage=stage, from_step=first - 1, device="CPU", workers=1)
    events.flush()


def use_data(claim, digests, content=None):
    """Share a prepared data set of each part, and let HEAD list it. Without a `content`, no other
    run has the same one."""
    run, me = claim.state, Owner.me()
    keys = {}
    for part, digest in digests.items():
        fingerprint = hashlib.sha256(f"{content or run.name} {digest}".encode()).hexdigest()
        folder = find_or_prepare(run, fingerprint, claim.epoch, me, lambda writer, seconds: None)
        if isinstance(folder, Writer):
            with tempfile.TemporaryDirectory() as files:
                write_data(Path(files), digest)
                folder = complete(run, fingerprint, folder, Path(files), (part,))
        keys[part] = data_key(fingerprint, folder)
    claim.commit(lambda head: head.with_data(keys))


def write_data(folder, digest):
    """Write a prepared data set that is like no other's."""
    (folder / "0" / "train").mkdir(parents=True)
    (folder / "0" / "train" / "shard_00000.npy").write_bytes(b"rows of " + digest.encode())
    (folder / "tokenizer.json").write_text("{}")
    about = {"part": "pretrain", "sources": [], "report": {}}
    (folder / "dataset.json").write_text(json.dumps(about))


def light_run(store, name="demo", clock=None):
    """Make a released run of JOB: pretrain done at step 20, rewound from 12 to 10; sft at 5.

    Its checkpoints: sft 5, pretrain 20 and 10, newest first. In a folder, and at a time that a test
    has set, it is a copy of the first one of this process, which took ten times as long.
    """
    if type(store) is not FileStore or clock is None or clock.now() > LATEST_SET:
        return _make(store, name, clock)
    shutil.copytree(_template(name, clock.now()), store.folder, dirs_exist_ok=True)
    return RunState(store, name, clock)


@functools.cache
def _template(name, now):
    """Return the folder of a store in which this process made a run at that time."""
    folder = Path(tempfile.mkdtemp(prefix="pion-light-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _make(FileStore(folder), name, Clock(now=lambda: now))
    return folder


def _make(store, name, clock):
    job = Job.model_validate(JOB)
    digests = digest_job(job)
    run = RunState(store, name, clock)
    claim = claim_run(run, Owner.me())
    run.write_job("0123", yaml.safe_dump(JOB))
    claim.set_job("0123")
    for stage in job.stages:
        description = {"format": 1, "inputs": stage_inputs(stage, digests)}
        run.write_stage(stage, digests.stages[stage], description)
    use_data(claim, digests.data)
    claim.finish_stage("prepare", digests.stages["prepare"], {"rows": 99})
    claim.set_restore("pretrain", 0)
    write_metrics(claim, "pretrain", 1, 12)
    save_checkpoint(claim, "pretrain", 10, digests.stages["pretrain"])
    claim = claim_run(run, Owner.me())
    claim.set_restore("pretrain", 10)
    write_metrics(claim, "pretrain", 11, 20)
    last = save_checkpoint(claim, "pretrain", 20, digests.stages["pretrain"])
    claim.finish_stage("pretrain", last.digest, {"steps": 20}, last.key)
    claim.set_restore("sft", 0)
    write_metrics(claim, "sft", 1, 5)
    save_checkpoint(claim, "sft", 5, digests.stages["sft"])
    claim.release()
    return run
