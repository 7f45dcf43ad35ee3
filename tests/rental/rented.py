"""The small job of jobs/rental-test.yaml on rented machines: launch it, follow it, compare it."""

import functools
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.state.head import Head
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.rental.skypilot_home import REPOSITORY, Loopback
from tests.support import waiting
from tests.support.s3_server import S3Server
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS, run_to_end

JOB = "jobs/rental-test.yaml"
RUN = "rental-test"
STEPS = 1200
# Without Ray, a pod begins to train half a minute sooner. Other tests cover Ray.
OVERRIDES = ("hardware.workers=0",)
# More steps than any test lasts, even if SkyPilot hesitates for minutes.
ENDLESS = "pretrain.steps=200000"
# Far more seconds than SkyPilot needs on the slowest machine.
wait_until = functools.partial(waiting.wait_until, seconds=900.0, every=0.5)


@dataclass
class Rented:
    """The loopback cloud with nothing rented, and a store in an empty bucket."""

    loopback: Loopback
    s3: S3Server
    store: str

    @property
    def environment(self):
        """The environment for a launch: SkyPilot's, and the store's credentials."""
        return self.loopback.environment | self.s3.environment()

    @property
    def run(self):
        """The run, as an argument of `pion status` and other commands."""
        return f"{self.store}/{RUN}"

    @property
    def machines(self):
        """Every machine rented so far, the oldest first."""
        return self.loopback.runpod.all_pods

    def launch(self, yaml="sky/runpod-spot.yaml", *, managed=True, overrides=""):
        """Run `sky jobs launch`, or a bare `sky launch`, as SkyPilot's users do; return at once.

        The command names the credentials. Their values are only in the environment.
        """
        command = ["jobs", "launch"] if managed else ["launch", "--async"]
        words = " ".join([f"store={self.store}", *OVERRIDES, overrides])
        settings = ["--env", f"JOB={JOB}", "--env", f"OVERRIDES={words}"]
        settings += ["--env", "AWS_ENDPOINT_URL"]
        secrets = ["--secret", "AWS_ACCESS_KEY_ID", "--secret", "AWS_SECRET_ACCESS_KEY"]
        self.loopback.sky(*command, "-y", "-d", yaml, *settings, *secrets, **self.s3.environment())

    def head(self):
        """Return the run's HEAD; an empty one before its first claim."""
        return RunState(open_store(self.store), RUN).read() or Head()

    def wait_for_machine(self, machine):
        """Wait until machine number `machine` (from 0) is rented."""
        wait_until(lambda: len(self.machines) > machine, f"machine {machine}")
        return self.machines[machine]

    def wait_for_training(self, machine=0, saves=1):
        """Wait until machine number `machine` (from 0) has saved at least `saves` times."""
        pod = self.wait_for_machine(machine)
        wait_until(lambda: pod.job_log().count(": saved") >= saves, f"saves of machine {machine}")
        return pod

    def job_status(self):
        """Return the newest managed job's status, such as RECOVERING."""
        newest = max(self.loopback.jobs(), key=lambda job: int(job["job_id"]))
        return str(newest["status"])

    def wait_for_status(self, status):
        """Wait until the newest managed job has this status."""
        wait_until(lambda: self.job_status().endswith(status), f"a job that is {status}", every=5.0)

    def wait_for_the_end(self):
        """Wait until the run is done, and SkyPilot has noticed."""
        wait_until(lambda: "publish" in self.head().stages, "publish")
        self.wait_for_status("SUCCEEDED")

    def final_model(self, steps=STEPS):
        """Return the sha256 of the trained weights."""
        return final_model(self.run, steps, self.environment)

    def rows_trained(self):
        """Return (step, first row) of every attempt, from its "training" event."""
        events = read_events(open_store(self.store), RUN)
        return [(e["from_step"], e["next_row"]) for e in events if e["event"] == "training"]


@contextmanager
def unbroken_run(folder, steps=STEPS, more=None):
    """Train the job without interruption, in `folder`; yield a function that returns the sha256 of
    its weights after so many steps of its last stage.

    `more` is what `pion run` gets next to the job; None: it ends after pretrain.
    """
    more = more or [f"pretrain.steps={steps}", "--until", "pretrain"]
    command = [f"{sys.prefix}/bin/pion", "run", str(REPOSITORY / JOB), "store=runs"]
    command += [*OVERRIDES, *more]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    @functools.cache
    def weights():
        assert process.wait(LONG_SECONDS) == 0, (folder / "log").read_text()
        return final_model(f"{folder}/runs/{RUN}", steps)

    try:
        yield weights
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def final_model(run, steps, environment=os.environ):
    """Return the sha256 of the newest weights in `pion checkpoints`, which must be of that step."""
    listed = run_to_end(
        [f"{sys.prefix}/bin/pion", "checkpoints", run, "--json"], env=environment, check=True
    )
    newest = max(json.loads(listed.stdout), key=lambda entry: (entry["step"], entry["epoch"]))
    assert newest["step"] == steps, "the run is not done"
    return str(newest["model_sha256"])
