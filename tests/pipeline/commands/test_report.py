"""`pion report`: the report of a run, written again from its store."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from tests.paths import JOBS
from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run


def test_the_report_can_be_written_again(here: Path, pion: Pion) -> None:
    run = make_run(here / "runs", release=False)
    assert "no record of its job" in pion("report", "demo")[2]
    text = (JOBS / "demo.yaml").read_text()
    run.write_job("0123", text)
    claim_run(run, Owner.me()).set_job("0123")
    code, out, _ = pion("report", "demo", "--json")
    assert code == 0
    assert "demo" in Path(json.loads(out)["report"]).read_text()
