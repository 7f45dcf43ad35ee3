"""What others packed can't leave its folder, fill the memory, or end in a traceback."""

import os
import stat
import zipfile

import pytest

from pion import untrusted_zip
from pion.errors import BadInput
from pion.evaluation.core import bundle_files
from pion.evaluation.core.bundle import read_bundle
from tests.pion.evaluation.core.test_bundle import refused
from tests.support.core_bundle import write_bundle, zip_bundle


@pytest.fixture
def packed(made_up_folder, tmp_path):
    return zip_bundle(made_up_folder, tmp_path / "b.zip")


def test_a_path_without_a_bundle(tmp_path):
    assert refused(tmp_path / "none") == (
        "BUNDLE: can't read this bundle of CORE (No such file or directory)"
    )
    assert refused(tmp_path) == (
        "BUNDLE: can't read core.yaml of this bundle (No such file or directory). A bundle of CORE "
        "has core.yaml, eval_meta_data.csv and the folder eval_data"
    )
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "BUNDLE is not a regular file, so it was not read"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("other/core.yaml", "")
    without = "BUNDLE: can't read core.yaml of this bundle (no such file)"
    assert refused(tmp_path / "b.zip").startswith(without)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    (tmp_path / "secret").write_text("secret")
    (folder / "core.yaml").unlink()
    (folder / "core.yaml").symlink_to(tmp_path / "secret")
    assert refused(folder) == "core.yaml is a link out of the bundle, so it was not read"
    (folder / "core.yaml").unlink()
    (folder / "core.yaml").symlink_to("core.yaml")
    assert "can't read core.yaml of this bundle" in refused(folder)
    (folder / "core.yaml").unlink()
    (folder / "core.yaml").mkdir()
    assert "is not a regular file" in refused(folder)


def link(entry):
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16


def bzip2(entry):
    entry.compress_type = zipfile.ZIP_BZIP2


def named(name):
    def rename(entry):
        entry.filename = name

    return rename


@pytest.mark.parametrize(
    ("trick", "expected"),
    [
        (link, "BUNDLE: 'extra' in it is a link, so it was not read"),
        (bzip2, "BUNDLE: 'extra' in it is compressed in an unusual way, so it was not read"),
        (named("../extra"), "BUNDLE: '../extra' in it leaves the archive, so it was not read"),
        (named("/etc/extra"), "BUNDLE: '/etc/extra' in it leaves the archive"),
        (named("a\\extra"), "BUNDLE: 'a\\\\extra' in it leaves the archive"),
        (named("C:/extra"), "BUNDLE: 'C:/extra' in it leaves the archive"),
        (named("a\x1bextra"), "BUNDLE: 'a\\x1bextra' in it leaves the archive"),
    ],
    ids=["link", "bzip2", "above", "absolute", "backslash", "drive", "control"],
)
def test_what_no_honest_archive_contains(trick, expected, packed):
    entry = zipfile.ZipInfo("extra")
    trick(entry)
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(entry, "text")
    assert refused(packed).startswith(expected)


def test_a_name_that_is_there_twice(packed):
    with zipfile.ZipFile(packed, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("eval_bundle/core.yaml", "icl_tasks: []")
    assert refused(packed) == (
        "BUNDLE: 'eval_bundle/core.yaml' in it is there twice, so it was not read"
    )


def test_an_encrypted_file(packed):
    content = bytearray(packed.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    packed.write_bytes(content)
    assert "in it is encrypted, so it was not read" in refused(packed)


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_an_archive_that_was_not_downloaded_whole(cut, packed):
    packed.write_bytes(packed.read_bytes()[:-cut])
    assert refused(packed) == (
        "BUNDLE is neither a folder nor a zip archive, or is damaged, or has a comment. If it is "
        "an archive, unpack it and name the folder"
    )


def test_a_damaged_file_in_an_archive(packed):
    with zipfile.ZipFile(packed) as file:
        entry = file.getinfo("eval_bundle/eval_meta_data.csv")
    content = bytearray(packed.read_bytes())
    for place in range(5):
        content[entry.header_offset + 70 + place] ^= 0xFF
    packed.write_bytes(content)
    message = refused(packed)
    assert message.startswith("BUNDLE: eval_meta_data.csv is damaged (")
    assert message.endswith("Download it again")


def test_a_bundle_of_too_many_bytes_is_not_read_and_what_is_not_asked_for_is_not_unpacked(
    made_up_folder, packed, monkeypatch
):
    bytes_read = sum(path.stat().st_size for path in made_up_folder.rglob("*") if path.is_file())
    for path in (made_up_folder, packed):
        monkeypatch.setattr(bundle_files, "LARGEST_BUNDLE", bytes_read)
        read_bundle(path)
        monkeypatch.setattr(bundle_files, "LARGEST_BUNDLE", bytes_read - 1)
        expected = f"the bundle BUNDLE has more than {bytes_read - 1:,} bytes, so it was not read"
        assert refused(path) == expected
    monkeypatch.undo()
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("eval_bundle/eval_data/unread.jsonl", "\n" * 10_000_000)
    with bundle_files.open_bundle(packed) as files:
        assert len(files.read("core.yaml")) < bytes_read
        with pytest.raises(BadInput, match=r"unread\.jsonl has more than 1,000,000 bytes"):
            files.read("eval_data/unread.jsonl", 1_000_000)


def test_an_archive_of_very_many_files(packed, monkeypatch):
    monkeypatch.setattr(bundle_files, "MOST_FILES", 4)
    assert refused(packed) == "BUNDLE has 5 files; at most 4 are read"
    monkeypatch.setattr(untrusted_zip, "LARGEST_RECORD", 100)
    assert "BUNDLE has a directory of" in refused(packed)
