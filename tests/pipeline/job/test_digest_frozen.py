"""The digests of every committed job never change: finished runs have recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.stages.prepare import _row_format
from tests.paths import DIGESTS, JOBS
from tests.support.published_models import load_shipped

FROZEN = json.loads((DIGESTS / "digests.json").read_text())
EVERY_SOURCE = DIGESTS / "every_source.yaml"
# Jobs that were in `jobs/` before, as they were, and the job with every source.
EARLIER = sorted(DIGESTS.glob("*.yaml"))

MOVED = (
    "Whoever finished a run of this job would have to train it again. If you added a field, "
    "declare it with `before` (pipeline/job/section.py) or `later_field` (pion/later_fields.py). "
    "If you changed a default, state the old value in the job file."
)


@pytest.mark.parametrize("path", [*sorted(JOBS.glob("*.yaml")), *EARLIER], ids=lambda p: p.name)
def test_no_digest_of_a_committed_job_moves(path: Path) -> None:
    digests = digest_job(load_shipped(path))
    data = {f"data.{part}": digest for part, digest in digests.data.items()}
    assert data | digests.stages == FROZEN[path.name], MOVED


def test_every_frozen_job_is_still_there() -> None:
    assert {path.name for path in [*JOBS.glob("*.yaml"), *EARLIER]} == FROZEN.keys()


def test_a_half_prepared_data_set_is_still_recognised(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    keys = []
    for _, source in load_job(EVERY_SOURCE).sources():
        found = SimpleNamespace(source=source, state=[1])
        keys.append(_row_format(found, tmp_path, 64, 100).key[:16])  # type: ignore[arg-type]
    assert keys == [
        "25a28b6392a20b6a",
        "471a56c957cfd26b",
        "5b0e75402f7c9780",
        "fd11f976188546cb",
        "d1b2b4d008f0cb6f",
        "d6b79065fdb78584",
        "5bbbe750d4328c5b",
        "3d93440333352ef8",
        "e94f6c631f630cdb",
        "6b15409f29e9f731",
        "496f7d5bff28d459",
        "7b12c18c67723b23",
    ], MOVED
