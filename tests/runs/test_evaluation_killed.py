"""An evaluation that is killed at any of its parts gives the same bytes as one that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.core_bundle import write_bundle
from tests.support.meddling import Meddling
from tests.support.waiting import wait_until
from tests.support.whole_runs import ends_with, kill, start, write_job

# SIGKILL comes in the midst of these parts, one in each attempt.
KILLED_IN = ("pretrain.core.made-up-choice", "sft.core.made-up-schema", "overlap")


def parts_of(folder: Path) -> dict[str, bytes]:
    found = (folder / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts/*.json")
    return {path.name: path.read_bytes() for path in found}


@pytest.mark.soak
def test_core_and_the_search_killed_at_three_parts_end_with_the_same_bytes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    core = {"path": str(bundle), "items": "all", "cropped": True}
    job = write_job(tmp_path, evaluate__core=core, evaluate__overlap="all")
    for place, part in enumerate(KILLED_IN):
        meddling = Meddling(tmp_path)
        meddling.wrap(
            "pipeline.run.measured_start:StoredParts.save",
            f"""
            def wrapper(save, self, name, result):
                if name.startswith({part!r}):  # it is computed, and not kept
                    (HERE / "midst {place}").touch()
                    time.sleep(1000)
                return save(self, name, result)
            """,
        )
        process = start(job, env=meddling.environment())
        wait_until((tmp_path / f"midst {place}").exists, f"the part {part}")
        kill(process)
        assert not any(name.startswith(part) for name in parts_of(tmp_path))
    ends_with(0, start(job, "--take-over"))
    killed = parts_of(tmp_path)
    assert {"by_item.json"} < killed.keys()
    for folder in (tmp_path / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts"):
        shutil.rmtree(folder)
    ends_with(0, start(job, "--redo", "evaluate"))
    whole = parts_of(tmp_path)
    assert killed == whole
    assert "sft.core.made_up_schema" in json.loads(whole["by_item.json"])
