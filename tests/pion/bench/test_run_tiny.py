"""`python -m pion.bench --tiny`: the whole bench with tiny models, on a bare image."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pion.bench.card import describe
from pion.bench.catalog import every_task
from pion.bench.models import Bench
from pion.bench.results import read_results
from tests.paths import REPOSITORY
from tests.pion.bench.bare import absent
from tests.support.waiting import read_until, rest_of, run_to_end

BARE = Path(__file__).with_name("bare.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
TINY = Bench(torch.device("cpu"), tiny=True)
# What --tiny leaves out, with a word of the reason.
LEFT_OUT = {
    "kernels/flex": "CUDA",
    "train/tiny-pion/compiled": "compiles nothing",
    "train/tiny-tachyon/compiled": "compiles nothing",
    "train/tiny-daisy/compiled": "compiles nothing",
    "train/tiny-pilon/compiled": "compiles nothing",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the process of a whole tiny bench on a bare image."""
    folder = tmp_path_factory.mktemp("bench")
    done = run_to_end([sys.executable, BARE, "--tiny"], cwd=folder, env=ENVIRONMENT)
    return folder, done


@pytest.fixture(scope="module")
def record(tiny: tuple[Path, Any]) -> dict[str, Any]:
    (path,) = tiny[0].glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_bare_image_is_enough_and_nothing_is_wrong(
    tiny: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = tiny[1]
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_row_is_in_the_table_and_in_the_file_in_this_order(
    tiny: tuple[Path, subprocess.CompletedProcess[str]], record: dict[str, Any]
) -> None:
    names = [task.name for task in every_task(TINY)]
    assert [row["name"] for row in record["rows"]] == names
    assert re.findall(r"(?m)^[✓✗·-] (\S+)", tiny[1].stdout) == names


def test_every_check_is_right_and_the_rest_is_measured_or_left_out_for_a_reason(
    record: dict[str, Any],
) -> None:
    checks = {task.name for task in every_task(TINY) if task.check}
    for row in record["rows"]:
        if row["name"] in LEFT_OUT:
            assert row["verdict"] == "left out"
            assert LEFT_OUT[row["name"]] in row["words"]
        else:
            assert row["verdict"] == ("right" if row["name"] in checks else "measured")


def test_the_file_says_which_card_code_and_software_it_is_about(record: dict[str, Any]) -> None:
    assert record["tiny"] is True
    assert record["card"]["torch"] == torch.__version__
    assert record["card"]["code"] == describe(TINY.device).code
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_the_file_has_no_host_name_no_user_and_no_path(record: dict[str, Any]) -> None:
    text = json.dumps(record)
    assert socket.gethostname() not in text
    assert str(REPOSITORY) not in text
    assert not re.search(r"/(home|root|tmp|usr|proc)\b", text)


def test_what_was_not_measured_has_no_number(record: dict[str, Any]) -> None:
    trained = next(row for row in record["rows"] if row["name"] == "train/tiny-pion/eager")
    assert trained["measures"]["measured_bytes"] is None
    assert trained["measures"]["compile_seconds"] is None
    assert trained["words"].endswith("GiB predicted, not measured")


def test_a_killed_bench_is_resumed_and_its_finished_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "pion.bench", "--tiny"]
    command += ["--only", "logits/pion", "masks", "generation", "kernels/loss"]
    first = subprocess.Popen(
        [*command, "--out", str(path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    read_until(first, "masks")
    first.send_signal(signal.SIGKILL)
    rest_of(first)
    left = read_results(path)
    names = [row.name for row in left.rows]
    assert names[:2] == ["logits/pion", "masks"]

    second = run_to_end([*command, "--resume", path], env=ENVIRONMENT)
    assert second.returncode == 0, second.stderr
    assert re.search(r"logits/pion +kept", second.stdout)
    assert re.search(r"kernels/loss +[\d.]+s", second.stdout)
    after = read_results(path)
    assert after.rows[: len(names)] == left.rows
    assert [row.name for row in after.rows][-1] == "kernels/loss"
    assert after.date == left.date


@pytest.mark.parametrize("package", ["psutil", "pydantic", "rich", "yaml", "pipeline"])
def test_a_bare_image_has_no_other_package(package: str) -> None:
    assert package in absent()
