"""A start of a run that has an owner needs little memory: it imports neither torch nor Ray."""

import os
import sys

from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.waiting import run_to_end
from tests.support.whole_runs import write_job

PRINT_HEAVY = "print(code, *{'torch', 'ray', 'transformers', 'boto3'} & set(sys.modules))"


def test_a_person_hears_that_a_run_is_owned_before_the_checks_that_import_torch(tmp_path):
    job = write_job(tmp_path, publish={"to": "model", "gguf": True})
    claim_run(RunState(FileStore(tmp_path / "runs"), "tiny"), Owner.me())
    code = f"import sys; from pipeline.cli import main; code = main(['run', {str(job)!r}])"
    _, terminal = os.openpty()
    ended = run_to_end([sys.executable, "-c", f"{code}; {PRINT_HEAVY}"], stdin=terminal)
    assert f"pid {os.getpid()}" in ended.stderr
    assert "That process is running. Nothing was started." in ended.stderr
    assert ended.stdout.splitlines()[-1] == "2"


def test_the_checks_of_a_job_that_publishes_to_a_folder_import_no_torch(tmp_path):
    job = write_job(tmp_path, publish={"to": "model"})
    code = f"""if True:
    import sys
    from pipeline.base.job_with_base import read_job
    from pipeline.run.preflight import preflight
    code = len(preflight(read_job({str(job)!r}, [], None)))
    """
    ended = run_to_end([sys.executable, "-c", f"{code}\n    {PRINT_HEAVY}"])
    assert ended.stdout == "0\n", ended.stderr
