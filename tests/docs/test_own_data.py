"""docs/own-data.md shows a job that is valid, and names options that exist."""

import re

from pipeline.cli import main
from tests.paths import REPOSITORY
from tests.support.published_models import load_shipped

TEXT = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")


def test_its_job_is_valid(tmp_path):
    (job,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    path = tmp_path / "chats.yaml"
    path.write_text(job, encoding="utf-8")
    assert load_shipped(path).stages == ["prepare", "sft", "evaluate", "publish"]


def test_its_options_exist(capsys):
    assert main(["new", "--help"]) == 0
    helped = capsys.readouterr().out
    named = set(re.findall(r"--[a-z][a-z-]+", re.sub("pion launch .*", "", TEXT)))
    assert len(named) >= 8
    assert {option for option in named if option not in helped} == set()
