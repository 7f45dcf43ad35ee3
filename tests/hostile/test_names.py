"""Names that no file, folder or run can have: exit code 2 with the reason."""

from pathlib import Path

import pytest
import yaml

from tests.hostile.in_process import ends_with
from tests.paths import SEEDS
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_dict

COMMANDS = """\
run NAME
generate NAME --prompt a
eval NAME a.txt
status NAME
checkpoints NAME
report NAME
stop NAME
fork NAME new
fork demo NAME
export NAME out
export demo NAME
import-seed NAME out
import-seed a.pt NAME
watch NAME""".splitlines()
LONG, MANY_PARTS = "a" * 5000, "/".join(["a"] * 3000)

NAMES = ["a\0b", f"\0/{LONG}", LONG, MANY_PARTS, f"x/{LONG}", f"s3://bucket/{MANY_PARTS}\0"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_can_not_exist_is_bad_input(command):
    for name in NAMES:
        words = (name if word == "NAME" else word for word in command.split())
        printed = ends_with(2, *words)
        assert printed.startswith("error: ")
        assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("store", [LONG, MANY_PARTS, "a\0b", f"file:///{LONG}"])
def test_a_job_whose_store_can_not_exist_is_bad_input(store):
    Path("job.yaml").write_text(yaml.safe_dump(tiny_dict(store=store)))
    printed = ends_with(2, "run", "job.yaml")
    assert "too long" in printed or "NUL" in printed


def test_the_current_folder_is_not_replaced_by_a_model(tmp_path):
    make_run(tmp_path / "runs")
    seed = str(SEEDS / "pion_nocap_ckpt.pt")
    for folder in (".", "./", "..", "../here", "/"):
        for source in (("export", f"{tmp_path}/runs/demo"), ("import-seed", seed)):
            printed = ends_with(2, *source, folder)
            assert "is the folder that you are in, or above it" in printed
            assert list(Path.cwd().iterdir()) == []
