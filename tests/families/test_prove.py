"""`pion prove` kills a run of each family, and finds the weights of an unbroken run."""

import pytest

from pipeline.cli import main
from tests.families.families import each_family
from tests.support.whole_runs import write_job


@pytest.mark.soak
@each_family
def test_killed_runs_end_with_equal_weights(family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = main(["prove", str(write_job(tmp_path, **family.job())), "--kills", "3", "--seed", "3"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "EQUAL" in out
