"""The jobs that docs/rewards.md shows are valid."""

import re

import pytest

from tests.paths import REPOSITORY
from tests.support.published_models import load_shipped

TEXT = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
STAGES = {"sums": ["reinforce"], "sums-taught": ["sft", "reinforce"]}
JOBS = dict(re.findall(r"```yaml\n(name: (\S+)\n.*?)```", TEXT, re.S))


@pytest.mark.parametrize(("job", "name"), JOBS.items(), ids=JOBS.values())
def test_its_jobs_are_valid(job, name, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(job, encoding="utf-8")
    assert load_shipped(path).train_stages == STAGES[name]
