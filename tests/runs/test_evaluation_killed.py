"""An evaluation that is killed at any of its parts gives the same bytes as one that is not."""

import hashlib
import json
import shutil

import pytest

from tests.support.core_bundle import write_bundle
from tests.support.meddling import Meddling
from tests.support.preference_runs import prefer_job
from tests.support.waiting import wait_until
from tests.support.whole_runs import ends_with, kill, start, write_job

# SIGKILL comes in the midst of these parts, one in each attempt.
KILLED_IN = ("pretrain.core.made-up-choice", "sft.core.made-up-schema", "ngram")


def parts_of(folder):
    found = (folder / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts/*.json")
    return {path.name: path.read_bytes() for path in found}


def killed_in_the_midst(folder, job, number, part, code=""):
    """Run the job until it has computed a part whose name begins with `part`, and kill it.

    The process runs `code` first.
    """
    meddling = Meddling(folder)
    meddling.run(code)
    meddling.wrap(
        "pipeline.run.measure_base:StoredParts.save",
        f"""
        def wrapper(save, self, name, result):
            if name.startswith({part!r}):  # it is computed, and not kept
                (HERE / "midst {number}").touch()
                time.sleep(1000)
            return save(self, name, result)
        """,
    )
    process = start(job, env=meddling.environment())
    wait_until((folder / f"midst {number}").exists, f"the part {part}")
    kill(process)
    assert not any(name.startswith(part) for name in parts_of(folder))


@pytest.mark.soak
def test_core_and_the_ngram_model_killed_at_three_parts_end_with_the_same_bytes(tmp_path):
    bundle = write_bundle(tmp_path / "b.zip")
    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
    pin = f"import_module('pion.evaluation.core.bundle').SHA256 = {sha256!r}"
    core = {"path": str(bundle), "items": "all", "cropped": True}
    job = write_job(tmp_path, evaluate__core=core)
    for number, part in enumerate(KILLED_IN):
        killed_in_the_midst(tmp_path, job, number, part, pin)
    pinned = Meddling(tmp_path, code=[pin]).environment()
    ends_with(0, start(job, "--take-over", env=pinned))
    killed = parts_of(tmp_path)
    assert {"by_item.json"} < killed.keys()
    for folder in (tmp_path / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts"):
        shutil.rmtree(folder)
    ends_with(0, start(job, "--redo", "evaluate", env=pinned))
    whole = parts_of(tmp_path)
    assert killed == whole
    assert "sft.core.made_up_schema" in json.loads(whole["by_item.json"])


@pytest.mark.soak
def test_preferences_killed_at_three_parts_end_with_the_same_bytes(tmp_path):
    """simpo has no reference, so the model before it is measured, too."""
    job = prefer_job(tmp_path, prefer__loss="simpo")
    for number, part in enumerate(("prefer.preferences", "sft.preferences", "sft.answers")):
        killed_in_the_midst(tmp_path, job, number, part)
    output = ends_with(0, start(job, "--take-over"))
    assert "answers of the sft model" in output
    assert "answers of the prefer model" not in output  # they were kept
    killed = parts_of(tmp_path)
    for folder in (tmp_path / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts"):
        shutil.rmtree(folder)
    ends_with(0, start(job, "--redo", "evaluate"))
    assert killed == parts_of(tmp_path)
    assert "prefer.accuracy" in json.loads(killed["by_item.json"])
