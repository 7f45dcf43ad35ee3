"""The digests of every committed job never change: finished runs have recorded them."""

import json

import pytest

from pipeline.job.digest import digest_job
from pipeline.stages.prepare import _key
from tests.paths import DIGESTS, JOBS
from tests.support.published_models import load_shipped

FROZEN = json.loads((DIGESTS / "digests.json").read_text())
# Jobs that were in `jobs/` before, as they were, and the job with every source.
EARLIER = sorted(DIGESTS.glob("*.yaml"))

MOVED = (
    "Whoever finished a run of this job would have to train it again. If you added a field, "
    "declare it with `before` (pipeline/job/section.py) or `later_field` (pion/later_fields.py). "
    "If you changed a default, state the old value in the job file."
)


@pytest.mark.parametrize("path", [*sorted(JOBS.glob("*.yaml")), *EARLIER], ids=lambda p: p.name)
def test_no_digest_of_a_committed_job_moves(path):
    digests = digest_job(load_shipped(path))
    data = {f"data.{part}": digest for part, digest in digests.data.items()}
    assert data | digests.stages == FROZEN[path.name], MOVED


def test_every_frozen_job_is_still_there():
    assert {path.name for path in [*JOBS.glob("*.yaml"), *EARLIER]} == FROZEN.keys()


def test_a_half_prepared_data_set_is_still_recognised(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert [_key("its fingerprint", number, tmp_path)[:16] for number in (0, 1)] == [
        "6cd3374b33f7727d",
        "1d7c4d0d1df5315a",
    ], MOVED
