"""What a restart reads from a store before it trains."""

from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.state.checkpoints.restore import newest_good
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from tests.support.light_run import JOB, light_run


class NoListing(FileStore):
    """A store whose listings are late by any time, as some services' are: nobody may ask."""

    def list(self, prefix=""):
        raise AssertionError(f"asked for a listing of {prefix!r}")


def test_a_run_is_claimed_and_restored_without_a_listing(tmp_path):
    light_run(FileStore(tmp_path))
    store = NoListing(tmp_path)
    claim = claim_run(RunState(store, "demo"), Owner.me())
    digests = digest_job(Job.model_validate(JOB))
    found = newest_good(Workspace(store, "demo"), claim.head, "sft", digests.stages["sft"])
    assert found.entry.step == 5
    claim.set_restore("sft", 5)
