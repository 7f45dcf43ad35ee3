"""The jobs in docs/rewards.md are valid; the second one teaches the model of the first one."""

import re

from tests.paths import REPOSITORY
from tests.support.published_models import load_shipped

TEXT = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_its_jobs_are_valid(tmp_path):
    path, stages = tmp_path / "job.yaml", []
    for job in re.findall(r"```yaml\n(name: .*?)```", TEXT, re.S):
        path.write_text(job, encoding="utf-8")
        stages.append(load_shipped(path).train_stages)
    assert stages == [["reinforce"], ["sft", "reinforce"]]
