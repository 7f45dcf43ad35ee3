"""A job or a rental file of Pion's own is taken by its name, where no such file is."""

import pytest

from pion.errors import BadInput
from pipeline.machine.own_files import OWN, file_meant, how_to_install, own_names

DEMO = OWN / "jobs" / "demo.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("asked", ["demo", "demo.yaml", "jobs/demo.yaml"])
def test_a_job_is_taken_by_its_name(asked):
    assert file_meant(asked, "jobs") == DEMO


@pytest.mark.parametrize("mine", ["demo", "demo.yaml", "jobs/demo.yaml"])
def test_a_file_here_comes_first(mine, folder):
    (folder / "jobs").mkdir()
    (folder / mine).touch()
    assert str(file_meant("demo", "jobs")) == mine


def test_a_folder_of_this_name_is_no_job(folder):
    (folder / "demo").mkdir()
    assert file_meant("demo", "jobs") == DEMO


def test_a_name_that_means_nothing_is_refused_with_the_closest():
    with pytest.raises(BadInput, match=r"no rental file of this name; did you mean runpod-spot\?"):
        file_meant("runpod-sopt", "sky")


@pytest.mark.parametrize("path", ["mine.yaml", "folder/demo.yaml", "/nowhere/demo", "..", "."])
def test_a_path_stays_a_path(path):
    assert str(file_meant(path, "jobs")) == path


def test_the_file_that_benches_a_card_is_no_rental():
    assert "bench" not in own_names("sky")


def test_a_checkout_installs_an_extra_with_uv_sync():
    assert how_to_install("rent") == "uv sync --extra rent"
