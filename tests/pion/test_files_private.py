"""Folders and files of this user alone, whatever the umask and whatever was there."""

import os
import stat

import pytest

from pion.errors import BadInput
from pion.files import private_cache_folder, private_folder
from pipeline.machine.folders import open_private


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0, 0o002, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_folder_and_its_missing_parents_are_private(tmp_path, umask):
    folder = private_folder(tmp_path / "a" / "b")
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)
    with open(folder / "lock", "ab", opener=open_private):
        assert mode(folder / "lock") == 0o600


def test_a_folder_that_others_could_read_is_closed_and_the_folder_above_stays(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o777)
    assert mode(private_folder(tmp_path / "old")) == 0o700
    assert mode(tmp_path) == 0o755


def test_a_link_to_a_larger_disk_is_followed(tmp_path):
    (tmp_path / "disk").mkdir(0o755)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    private_folder(tmp_path / "cache")
    assert mode(tmp_path / "disk") == 0o700


def test_the_folder_of_another_user_is_refused_and_left_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "pion").mkdir(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(BadInput, match=r"pion belongs to .*Set XDG_CACHE_HOME to a folder of your"):
        private_cache_folder("runs")
    assert mode(tmp_path / "pion") == 0o755
    assert not (tmp_path / "pion" / "runs").exists()


def test_a_folder_that_can_not_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/x: this folder can't be made for you alone"):
        private_folder(tmp_path / "file" / "x")


def test_a_link_is_not_opened_as_a_lock(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        open_private(str(tmp_path / "lock"), os.O_WRONLY | os.O_CREAT)
    assert not (tmp_path / "elsewhere").exists()
