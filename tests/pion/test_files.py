"""Files are written whole or not at all."""

import pytest

from pion.errors import BadInput
from pion.files import write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    (tmp_path / "a.json.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"a\.json: the disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
