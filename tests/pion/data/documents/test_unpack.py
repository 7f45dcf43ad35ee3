"""A file is opened by its first bytes: packed text is read, and other files are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest

from pion.data.documents.unpack import opened
from pion.errors import BadInput

TEXT = b"A fox.\n" * 100


def read(file: Path) -> bytes:
    with opened(file) as stream:
        return stream.read()


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def test_gzip_and_zstd_are_read_whatever_the_name_says(tmp_path: Path) -> None:
    for name, data in (("a.txt", TEXT), ("b.txt", gzip.compress(TEXT)), ("c", zstd(TEXT))):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == TEXT


# gzip writes the time into what it packs, so the bytes can't name a test.
@pytest.mark.parametrize("data", [gzip.compress(TEXT)[:-9], zstd(TEXT)[:-9]], ids=["gzip", "zstd"])
def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.gz: damaged"):
        read(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PAR1\x15\x04", "parquet, not UTF-8 text. Use kind: parquet"),
        ("A fox.".encode("utf-16"), "text in UTF-16"),
        (("A fox." * 9).encode("utf-16-le"), "text in UTF-16, or no text"),
        pytest.param(gzip.compress(gzip.compress(TEXT)), "packed twice", id="packed twice"),
        (b"\xfd7zXZ\0" + bytes(8), "packed with xz"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_what_is_no_text_is_named_with_what_to_do(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(BadInput) as refused:
        read(tmp_path / "a.txt")
    assert what in str(refused.value)


def test_text_with_a_byte_order_mark_or_zero_bytes_in_it_is_not_taken_for_utf_16(
    tmp_path: Path,
) -> None:
    for data in (b"\xef\xbb\xbf" + TEXT, b"a\0b\0\n" + TEXT, json.dumps({"a": 1}).encode()):
        (tmp_path / "a.txt").write_bytes(data)
        assert read(tmp_path / "a.txt") == data
