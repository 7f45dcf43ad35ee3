"""What surrounds a run: a locale without letters other than ASCII, and a clock that jumps."""

import os
import shutil
import sys

import pytest

from pipeline.state.stores import FileStore
from tests.support.light_run import light_run
from tests.support.waiting import run_to_end
from tests.support.whole_runs import ends_with, final_weights, kill, start, wait_for, write_job


def c_locale(**more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    return environment | {"LC_ALL": "C"} | more


def test_a_name_that_is_not_ascii_under_the_c_locale(tmp_path):
    folder = tmp_path / "läufe und 模型"
    light_run(FileStore(folder), "demo")
    command = [sys.executable, "-m", "pipeline.cli", "status", f"{folder}/demo"]
    done = run_to_end(command, env=c_locale())
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    assert not done.stderr


def test_a_name_that_the_locale_cannot_write_is_refused(tmp_path):
    job = write_job(tmp_path, store=str(tmp_path / "läufe"))
    only_ascii = c_locale(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    output = ends_with(2, start(job, env=only_ascii))
    assert "this locale has only ascii characters" in output
    assert "Set PYTHONUTF8=1" in output
    assert "Traceback" not in output


@pytest.mark.soak
def test_a_whole_run_under_the_c_locale(tmp_path):
    folder = tmp_path / "läufe"
    folder.mkdir()
    job = write_job(folder, publish={"to": str(folder / "modèle")})
    with (folder / "text" / "all.txt").open("a", encoding="utf-8") as text:
        text.write("\n\nÄpfel, 模型.")
    output = ends_with(0, start(job, env=c_locale()))
    assert "bug" not in output
    assert (folder / "modèle" / "model.safetensors").exists()


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_whole_run_on_a_clock_that_is_a_day_ahead_and_then_a_day_behind(tmp_path, whole):
    done = run_to_end(["faketime", "now", "env"], check=True)
    preload = dict(line.split("=", 1) for line in done.stdout.splitlines())["LD_PRELOAD"]
    job = write_job(tmp_path)
    ahead = start(job, env=os.environ | {"LD_PRELOAD": preload, "FAKETIME": "+1d"})
    wait_for(ahead, "pretrain: done")
    kill(ahead)
    behind = start(job, env=os.environ | {"LD_PRELOAD": preload, "FAKETIME": "-1d"})
    output = ends_with(0, behind)
    assert "bug" not in output
    assert final_weights(tmp_path) == final_weights(whole())
