"""`python -m pion.bench --tiny`: the bench with tiny models, on a bare image.

By default a row of each kind, so that each family has one; in soak tests every row.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pion.bench.__main__ import main
from pion.bench.card import describe
from pion.bench.catalog import chosen_tasks
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
    f"train/tiny-{family}/compiled": "compiles nothing"
    for family in ("pion", "tachyon", "daisy", "pilon", "lepton")
}
# A row of each kind.
SOME = (
    *("losses/pion/float32", "losses/lepton/bfloat16", "train/tiny-pion", "save"),
    *("generate/tiny-pion/16", *LEFT_OUT),
)


class Tiny(NamedTuple):
    """A tiny bench on a bare image: the rows it was asked for, its folder and its process."""

    only: tuple[str, ...]
    folder: Path
    done: subprocess.CompletedProcess[str]

    @property
    def names(self):
        return [task.name for task in chosen_tasks(TINY, self.only)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SOME, id="a row of each kind"),
        pytest.param((), id="every row", marks=pytest.mark.soak),
    ],
)
def tiny(request, tmp_path_factory):
    only = request.param
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, BARE, "--tiny", *(["--only", *only] if only else [])]
    return Tiny(only, folder, run_to_end(command, cwd=folder, env=ENVIRONMENT))


@pytest.fixture(scope="module")
def record(tiny):
    (path,) = tiny.folder.glob("*.json")
    return json.loads(path.read_text())


def test_a_bare_image_is_enough_and_nothing_is_wrong(tiny):
    assert tiny.done.returncode == 0, tiny.done.stdout + tiny.done.stderr


def test_every_row_is_in_the_table_and_in_the_file_in_this_order(tiny, record):
    assert [row["name"] for row in record["rows"]] == tiny.names
    assert re.findall(r"(?m)^[✓✗·-] (\S+)", tiny.done.stdout) == tiny.names
    assert set(LEFT_OUT) <= set(tiny.names)


def test_every_check_is_right_and_the_rest_is_measured_or_left_out_for_a_reason(record):
    checks = {task.name for task in chosen_tasks(TINY, ()) if task.check}
    for row in record["rows"]:
        if row["name"] in LEFT_OUT:
            assert row["verdict"] == "left out"
            assert LEFT_OUT[row["name"]] in row["words"]
        else:
            assert row["verdict"] == ("right" if row["name"] in checks else "measured")


def test_the_file_says_which_card_code_and_software_it_is_about(record):
    assert record["tiny"] is True
    assert record["card"]["torch"] == torch.__version__
    assert record["card"]["code"] == describe(TINY.device).code
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_the_file_has_no_host_name_no_user_and_no_path(record):
    text = json.dumps(record)
    assert socket.gethostname() not in text
    assert str(REPOSITORY) not in text
    assert not re.search(r"/(home|root|tmp|usr|proc)\b", text)


def test_what_was_not_measured_has_no_number(record):
    trained = next(row for row in record["rows"] if row["name"] == "train/tiny-pion/eager")
    assert trained["measures"]["measured_bytes"] is None
    assert trained["measures"]["compile_seconds"] is None
    assert trained["words"].endswith("GiB predicted, not measured")


@pytest.mark.soak  # test_run.py has what the file has before each row, and what is kept
def test_a_killed_bench_is_resumed_and_its_finished_rows_are_kept(tmp_path, capsys):
    path = tmp_path / "result.json"
    options = ["--tiny", "--only", "losses/pion", "save", "generate/tiny-pion/1"]
    first = subprocess.Popen(
        [sys.executable, "-m", "pion.bench", *options, "--out", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    read_until(first, "generate/tiny-pion/1")
    first.send_signal(signal.SIGKILL)
    rest_of(first)
    left = read_results(path)
    names = [row.name for row in left.rows]
    assert names[0] == "losses/pion/bfloat16"

    assert main([*options, "--resume", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"losses/pion/bfloat16 +kept", said)
    assert re.search(r"losses/pion/float32 +[\d.]+s", said)
    after = read_results(path)
    assert after.rows[: len(names)] == left.rows
    assert [row.name for row in after.rows][-1] == "losses/pion/float32"
    assert after.date == left.date


def test_a_bare_image_has_no_other_package():
    assert {"psutil", "pydantic", "rich", "yaml", "pipeline"} <= absent()
