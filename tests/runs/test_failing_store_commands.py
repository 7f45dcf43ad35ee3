"""Every command that uses a store, with a store that fails at its first, second, … request.

The table has each command's exit code. The message always says what failed, what is safe, and what
to run again.
"""

import io
import re
import shutil
import sys
import threading
from dataclasses import dataclass

import pytest
import yaml

from pipeline.cli import main
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.state.claim import claim_run
from pipeline.state.heartbeat import Heartbeat
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from tests.support.fake_provider import FakeProvider
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.light_run import light_run, save_checkpoint, use_data

REQUESTS = (
    "read",
    "read_versioned",
    "write",
    "compare_and_swap",
    "delete",
    "download",
    "list",
    "probe",
    "sweep_unfinished",
)
REASON = "the test says so"


class Store:
    """Counts the requests to all folder stores of this process; fails from `down_from` on."""

    def __init__(self, monkeypatch):
        self.asked, self.down_from, self.outage = 0, 0, True
        self._lock, self._inside = threading.Lock(), threading.local()
        for name in REQUESTS:
            monkeypatch.setattr(FileStore, name, self._counted(name, getattr(FileStore, name)))

    def fail_from(self, request, *, outage):
        self.asked, self.down_from, self.outage = 0, request, outage

    @property
    def has_failed(self):
        return 0 < self.down_from <= self.asked

    def _counted(self, name, method):
        def ask(store, *arguments):
            if getattr(self._inside, "a_request", False):  # one request may call another
                return method(store, *arguments)
            with self._lock:
                self.asked += 1
                if self.has_failed:
                    raise StoreError("reach", f"{name} {arguments[:1]}", REASON, outage=self.outage)
            self._inside.a_request = True
            try:
                return method(store, *arguments)
            finally:
                self._inside.a_request = False

        return ask


@dataclass(frozen=True)
class Row:
    """A command, and a pattern of its exit codes if request 1, 2, … fails: one letter each.

    n: 1, no work; b: 2, before work; r: 75, run it again; w: 74, work done; 0: done anyway
    `ends`: the exit code with a working store.
    `every`: by default with 6, only every sixth request fails; under soak, each.
    """

    command: str
    codes: str
    managed: bool = False
    ends: int = 0
    every: int = 1

    @property
    def changes(self):
        """Whether it may have worked on the project, so that each request needs a new one."""
        return any(letter in self.codes for letter in "brw")

    @property
    def name(self):
        words = [word for word in self.command.split() if not word.startswith("/")]
        return " ".join(words) + (" (managed)" if self.managed else "")


LETTERS = {0: "0", 1: "n", 2: "b", 74: "w", 75: "r"}
SAFE = {
    "n": "Nothing was lost|so it is not a run yet",
    "b": "Nothing was (started|forked|rented)|could not start",
    "r": "Nothing was started",
    "w": "Everything committed before is safe",
}

TABLE = [
    # These only read or leave a request.
    Row("status", "n+0*"),
    Row("status demo", "n+"),
    Row("checkpoints demo", "n+"),
    Row("checkpoints demo --verify", "n+"),
    Row("report demo", "n+"),
    Row("stop demo", "n+"),
    Row("deadline demo", "n+"),
    Row("deadline demo --hours 5", "n+"),
    Row("export model out", "n+"),
    Row("generate model --prompt a --max-tokens 1", "n+"),
    Row("chat model", "n+"),
    Row("eval model text/all.txt", "n+"),
    Row("prove job.yaml --kills 1", "n", ends=1),
    # This command copies. Its first requests only check whether it can.
    Row("fork demo demo-2", "b+n+", every=6),
    # These start work, or rent machines for it.
    Row("run job.yaml", "b+w+0*", every=8),
    Row("run job.yaml", "r+w+0*", managed=True, every=8),
    Row("run finished.yaml", "b+0*"),
    Row("run finished.yaml", "r+0*", managed=True),
    # Some of its checks ask at the same time, and not all of them need an answer.
    Row("check job.yaml", "b[b0]*", every=9),
    Row("launch job.yaml --on sky.yaml", "b+0*"),
    Row("launch job.yaml --on sky.yaml deadline.hours=500", "b+0*"),
    Row("hop demo --on sky.yaml --job demo.yaml", "b+0*"),
    # These read measurements from the store, and continue without them.
    Row("plan job.yaml --gpu A40", "0+"),
    # These also query SkyPilot.
    Row("watch demo", "n+", ends=2),
    Row("rentals demo", "n+"),
]

# The rows with which a store that forbids a request is tried by default, too: one of each kind.
TELLING = (
    "status demo",
    "run job.yaml",
    "run finished.yaml (managed)",
    "launch job.yaml --on sky.yaml",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A project with runs: `demo`, `model` with weights, one to evaluate, and a finished one."""
    folder = tmp_path_factory.mktemp("project")
    write_tiny_data(folder)
    store = FileStore(folder / "runs")
    light_run(store, "demo")
    make_run(folder / "runs", "model")
    job = tiny_dict(hardware={"workers": 0}, prices={"A40": 0.2})
    (folder / "demo.yaml").write_text(yaml.safe_dump(job | {"name": "demo"}))
    for name in ("job", "finished"):
        fields = job | {"name": name}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields))
        trained_run(store, Job.model_validate(fields), evaluated=name == "finished")
    sky = {"resources": {"infra": "runpod", "accelerators": "A40"}, "run": 'pion run "$JOB"'}
    (folder / "sky.yaml").write_text(yaml.safe_dump(sky | {"envs": {"JOB": None}}))
    return folder


def trained_run(store, job, *, evaluated):
    """A released run of `job` with everything but `evaluate` done."""
    run, digests = RunState(store, job.name), digest_job(job)
    claim = claim_run(run, Owner.me())
    use_data(claim, digests.data)
    claim.finish_stage("prepare", digests.stages["prepare"], {})
    for stage in job.train_stages:
        last = save_checkpoint(claim, stage, job.section(stage).steps, digests.stages[stage])
        claim.finish_stage(stage, last.digest, {}, last.key)
    if evaluated:
        claim.finish_stage("evaluate", digests.stages["evaluate"], {})
    claim.release()


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    """Copies the template into the working directory. Nothing is evaluated or rented."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "project"

    def renew():
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        monkeypatch.chdir(place)

    return renew


def cheaply(monkeypatch):
    """Replace slow work that does not use the store."""
    import pion.formats.verify
    import pipeline.prove.proof
    import pipeline.stages.evaluate
    import pipeline.training.saving
    from pipeline.prove.attempt import Attempt

    def evaluate(job, trained, parts, *rest):
        return {"pretrain": parts.save("pretrain", {"loss": 1.0})}

    monkeypatch.setattr(pipeline.stages.evaluate, "evaluate_run", evaluate)
    # A run whose store is down leaves this thread running until its process ends.
    monkeypatch.setattr(Heartbeat, "start", lambda heartbeat: None)
    done = Attempt(False, 0, None, "evaluate", {}, [0.0], [0.0], 1.0, "")
    monkeypatch.setattr(pion.formats.verify, "verify_export", lambda *_, **__: 0.0)
    monkeypatch.setattr(pipeline.prove.proof, "attempt", lambda *_: done)
    monkeypatch.setattr(pipeline.training.saving, "RENTAL_LINGER", 0.0)


def rent_nothing(monkeypatch):
    """A SkyPilot without jobs that accepts every submission."""
    from pipeline.rent.check import machines
    from pipeline.rent.managed import hop, launch, rentals_and_orphans, request, watch
    from pipeline.rent.plan import prices

    provider = FakeProvider()
    provider.submit = lambda task, name: 1
    for module in (launch, hop, rentals_and_orphans, watch):
        monkeypatch.setattr(module, "Provider", lambda: provider)
    for module in (launch, hop):
        monkeypatch.setattr(module, "require_checks", lambda *_, **__: None)
    monkeypatch.setattr(machines, "fitting", lambda *_, **__: [])
    monkeypatch.setattr(request, "with_candidates", lambda sky_yaml, candidates: sky_yaml)
    monkeypatch.setattr(request, "make_task", lambda config, secrets: None)
    monkeypatch.setattr(watch, "follow_or_leave", lambda *_: 0)
    monkeypatch.setattr(hop, "_see_it_through", lambda *_: True)
    machines = [prices.Offer(None, 1)]  # a CPU, whose memory nobody predicts
    monkeypatch.setattr(prices, "market", lambda *_, **__: (machines, []))


def cases():
    """Yield each row twice. A manager changes what an outage means, and nothing else."""
    for row in TABLE:
        for outage, how in ((True, "outage"), (False, "forbidden")):
            soak = [] if outage or row.name in TELLING else [pytest.mark.soak]
            name = f"{row.name}-{how}"
            if row.every == 1 or not soak:
                yield pytest.param(row, outage, row.every, id=name, marks=soak)
            if row.every > 1:
                yield pytest.param(row, outage, 1, id=f"{name}-each", marks=pytest.mark.soak)


@pytest.mark.parametrize(("row", "outage", "every"), cases())
def test_the_table(row, outage, every, project, monkeypatch, capsys):
    cheaply(monkeypatch)
    rent_nothing(monkeypatch)
    store = Store(monkeypatch)
    if row.managed:
        monkeypatch.setenv("PION_LAUNCH_ID", "launch-1")
    letters = ""
    while True:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        store.fail_from(0, outage=outage)
        if not letters or row.changes:
            project()
        request = len(letters) * every + 1
        store.fail_from(request, outage=outage)
        code = main(row.command.split())
        text = " ".join("".join(capsys.readouterr()).split())
        if not store.has_failed:
            assert code == row.ends, text
            break
        letters += LETTERS[code]
        words = f"{row.command}, request {request}: exit code {code}\n{text}"
        assert "bug" not in text, words
        if code:
            assert REASON in text, words
            assert re.search(SAFE[letters[-1]], text), words
            assert re.search(r"run .* again\.", " ".join(text.split())), words
    expected = row.codes if outage else row.codes.replace("r", "b")
    assert re.fullmatch(expected, letters), letters
