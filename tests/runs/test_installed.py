"""Pion as a wheel in an empty folder: from a CSV to a checked rental, and a run to its end."""

import os
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.paths import JOBS, RENTALS
from tests.pipeline.base.conftest import export_base
from tests.support.installed_pion import build_and_install, write_questions
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.runpod_api import CONFIG, RunPodApi, serve_runpod
from tests.support.sky_catalog import write_catalog
from tests.support.waiting import LONG_SECONDS

pytestmark = pytest.mark.slow


class Installed:
    """The command `pion` of a wheel, in a folder that had nothing."""

    def __init__(self, root, environment):
        self.wheel, target = build_and_install(root)
        self.folder, self.home = root / "folder", root / "home"
        self.folder.mkdir()
        (self.home / ".runpod").mkdir(parents=True)
        (self.home / ".runpod/config.toml").write_text(CONFIG)
        write_catalog(self.home)
        self.command = target / "bin/pion"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(target),
            "PION_ALLOW_LOOPBACK": "1",
            "COLUMNS": "300",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            **environment,
        }

    def pion(self, *arguments, code=0):
        """Run the command, and return what it prints."""
        done = subprocess.run(
            [self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONG_SECONDS,
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory, s3):
    with serve_runpod(RunPodApi()) as url:
        environment = s3.environment() | {"RUNPOD_API_BASE_URL": url}
        yield Installed(tmp_path_factory.mktemp("wheel"), environment)


def test_a_tiny_job_runs_and_a_csv_becomes_a_job_whose_rental_is_right(installed, s3):
    write_tiny_data(installed.folder)
    tiny = tiny_dict(pretrain__steps=4, hardware={"workers": 0})
    del tiny["sft"], tiny["evaluate"]
    (installed.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    with ThreadPoolExecutor(1) as meanwhile:
        run = meanwhile.submit(installed.pion, "run", "tiny")
        rent_for_questions(installed, s3)
        printed = run.result()
        assert "pretrain" in printed
        assert "leaked" not in printed, "libraries that complain of what is never freed"


def rent_for_questions(installed, s3):
    """Make a job of a CSV, and check its rental by the name of Pion's own."""
    write_questions(installed.folder)
    export_base(installed.folder / "base")
    installed.pion("new", "questions.csv", "--from", "base")
    store = f"store=s3://{s3.bucket()}/runs"
    checked = installed.pion("check", "questions.yaml", "--on", "runpod-spot", store)
    assert f"{installed.folder} is copied to the machine, and Pion next to it" in checked
    (sent,) = installed.home.glob(".cache/pion/code/*/*.whl")
    with zipfile.ZipFile(sent) as copy, zipfile.ZipFile(installed.wheel) as wheel:
        assert sent.name == installed.wheel.name
        assert {n: copy.getinfo(n).CRC for n in copy.namelist() if "RECORD" not in n} == {
            n: wheel.getinfo(n).CRC for n in wheel.namelist() if "RECORD" not in n
        }


def test_the_wheel_has_every_job_and_rental_and_init_copies_them(installed):
    listed = installed.pion("init")
    names = {path.stem for path in (*JOBS.glob("*.yaml"), *RENTALS)}
    assert names <= set(listed.split())
    installed.pion("init", "runpod-spot", "pion-nano")
    rental = yaml.safe_load((installed.folder / "runpod-spot.yaml").read_text())
    ((there, here),) = rental["file_mounts"].items()
    assert rental["run"] == f"exec bash {there}/sky/boot.sh"
    assert os.path.isfile(f"{here}/sky/boot.sh")
    assert (installed.folder / "pile_tokenizer.json").is_file(), "pion-nano names it"
    (installed.folder / "pion-nano.yaml").write_text("name: mine\n")
    refused = installed.pion("init", "demo", "pion-nano", code=2)
    assert "pion-nano.yaml exists and is different" in refused
    assert not (installed.folder / "demo.yaml").exists()
    assert "did you mean demo-prefer?" in installed.pion("check", "demo-prefr", code=2)
