"""The status of a run from its records."""

import dataclasses

from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.status.run_status import is_finished
from pipeline.state.stores import FileStore
from tests.support.light_run import light_run


def test_a_run_whose_job_is_not_known_counts_as_unfinished(tmp_path):
    run = light_run(FileStore(tmp_path))
    claim = claim_run(run, Owner.me())
    for stage in ("sft", "evaluate"):
        claim.finish_stage(stage, f"digest-{stage}", {})
    claim.release()
    head = run.read()
    assert is_finished(run, head)
    assert not is_finished(run, dataclasses.replace(head, job=None))
    run.write_job("broken", "name: [")
    assert not is_finished(run, dataclasses.replace(head, job="broken"))
