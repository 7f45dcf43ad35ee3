"""Arrays of token ids in files: map them into memory, and validate them."""

import hashlib
import io
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pion.errors import BadInput
from pion.untrusted import open_file, read_file

# Of an .npy file: more than the longest header that numpy reads.
NPY_HEADER_BYTES = 16_384
# The most bytes of a file with an array whose length nobody knows before it is read.
LARGEST_ARRAY = 1 << 30
# The header of Daisy's .bin shards has 256 int32: magic, version, number of tokens, and zeros.
BIN_HEADER_BYTES = 1024
BIN_MAGIC = 20240520
BIN_VERSION = 1


def open_shard(path: str | Path, seq_len: int) -> np.ndarray:
    """Memory-map a shard of either format as ids ``(rows, seq_len)``.

    Raises:
        BadInput: the file isn't such a shard; see ``open_npy`` and ``open_bin``.
    """
    return (open_bin if Path(path).suffix == ".bin" else open_npy)(path, seq_len)


def open_npy(path: str | Path, seq_len: int) -> np.ndarray:
    """Memory-map an ``.npy`` array of integers ``(n, k * seq_len)`` as ``(n * k, seq_len)``.

    Rows that are a multiple of ``seq_len`` long are split; no ids are lost.

    Raises:
        BadInput: the file is missing, isn't ``.npy``, is truncated, has no integers, isn't 2-D, or
            has rows whose length isn't a multiple of ``seq_len``.
    """
    try:
        with open_file(path) as file:
            beginning = file.read(NPY_HEADER_BYTES)
            actual = file.seek(0, 2)
    except OSError as error:
        raise BadInput(f"{path}: can't read this .npy shard ({error})") from None
    header = parse_rows_header(beginning, str(path), seq_len)
    return _map_rows(path, actual, header.dtype, header.offset, prod(header.shape), seq_len)


def read_array(
    path: str | Path,
    dtype: npt.DTypeLike,
    shape: tuple[int | None, ...],
    sha256: str | None = None,
) -> np.ndarray:
    """Return the array of one dtype in an ``.npy`` file. It can't be written to.

    In ``shape``, None is any length. Then the file may have LARGEST_ARRAY bytes.

    Raises:
        BadInput: the file is missing, isn't a regular one or ``.npy``, is too large, has another
            hash than ``sha256``, or has another array.
    """
    size = prod(length or 0 for length in shape) * np.dtype(dtype).itemsize
    try:
        data = read_file(path, LARGEST_ARRAY if None in shape else NPY_HEADER_BYTES + max(0, size))
    except OSError as error:
        raise BadInput(f"{path}: can't read this array ({error.strerror})") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise BadInput(f"{path}: has been altered (its sha256 differs)")
    return parse_array(data, dtype, shape, str(path))


def parse_array(
    data: bytes, dtype: npt.DTypeLike, shape: tuple[int | None, ...], where: str
) -> np.ndarray:
    """Return the array of one dtype in the bytes of an ``.npy`` file. It can't be written to.

    In ``shape``, None is any length.

    Raises:
        BadInput: the bytes have another array, or none; the message names ``where``.
    """
    wanted = np.dtype(dtype)
    header = parse_npy_header(data[:NPY_HEADER_BYTES], where)
    size = len(data) - header.offset
    fits = len(header.shape) == len(shape) and all(
        length in (None, actual) for length, actual in zip(shape, header.shape)
    )
    expected = wanted.str, False, prod(header.shape) * wanted.itemsize
    if not fits or (header.dtype.str, header.fortran_order, size) != expected:
        lengths = " × ".join("any" if length is None else f"{length:,}" for length in shape)
        raise BadInput(
            f"{where}: has {header.dtype} of shape {header.shape} in {size:,} bytes, not "
            f"{lengths} numbers of {wanted}"
        )
    return np.frombuffer(data, wanted, prod(header.shape), header.offset).reshape(header.shape)


class NpyHeader(NamedTuple):
    """What the header of an `.npy` file says; the data begin at byte `offset`."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    offset: int


def parse_npy_header(beginning: bytes, where: str) -> NpyHeader:
    """Return the header in the first NPY_HEADER_BYTES (or all) of an `.npy` file.

    Raises:
        BadInput: there is no header, or one that no array can have; the message names ``where``.
    """
    file = io.BytesIO(beginning)
    try:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy evaluates a Python literal, which can fail in many ways
        raise BadInput(f"{where}: can't read this .npy shard ({str(error)[:200]})") from None
    if not all(0 <= length < 2**63 for length in shape):
        raise BadInput(f"{where}: can't read this .npy shard (its shape is impossible)")
    return NpyHeader(shape, fortran_order, dtype, file.tell())


def parse_rows_header(beginning: bytes, where: str, seq_len: int) -> NpyHeader:
    """Return the header of an array of integers ``(n, k * seq_len)``, as `parse_npy_header` does.

    Raises:
        BadInput: it is of another array.
    """
    header = parse_npy_header(beginning, where)
    if header.dtype.kind not in "iu":
        raise BadInput(
            f"{where}: contains {header.dtype}, but token ids must be integers (uint16, int32…)."
        )
    if len(header.shape) != 2 or header.fortran_order:
        raise BadInput(
            f"{where}: shape {header.shape}; a shard must be a C-ordered (rows, seq_len) array."
        )
    length = header.shape[1]
    if length == 0 or length % seq_len:
        raise BadInput(
            f"{where}: rows of {length:,} ids can't be read as rows of seq_len {seq_len:,}: "
            f"seq_len must be {length:,} or divide it."
        )
    return header


def open_bin(path: str | Path, seq_len: int) -> np.ndarray:
    """Memory-map a Daisy ``.bin`` shard as ids ``(tokens // seq_len, seq_len)``.

    The file has a header of 256 int32 (magic, version, tokens) and then uint16 ids. The last
    ``tokens % seq_len`` ids are left out.

    Raises:
        BadInput: the file is missing, has another magic or version, or another size than its header
            says.
    """
    try:
        with open_file(path) as file:
            header = np.frombuffer(file.read(BIN_HEADER_BYTES), dtype="<i4")
            actual = file.seek(0, 2)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: can't read this .bin shard ({error})") from None
    if actual < BIN_HEADER_BYTES or header[0] != BIN_MAGIC or header[1] != BIN_VERSION:
        raise BadInput(
            f"{path}: not a .bin shard of magic {BIN_MAGIC} and version {BIN_VERSION}: it starts "
            f"with {header[:2].tolist()}."
        )
    return _map_rows(path, actual, np.dtype("<u2"), BIN_HEADER_BYTES, int(header[2]), seq_len)


def check_ids(rows: np.ndarray, vocab_size: int, name: str) -> None:
    """Check that every id in ``rows`` ``(rows, seq_len)`` is below ``vocab_size``.

    Raises:
        BadInput: an id isn't; the message names the shard, the row and the id.
    """
    step = max(1, 2**22 // rows.shape[1])
    for first in range(0, len(rows), step):
        chunk = rows[first : first + step]
        if chunk.min() < 0 or chunk.max() >= vocab_size:
            row, column = np.argwhere((chunk < 0) | (chunk >= vocab_size))[0].tolist()
            raise BadInput(
                f"{name}: row {first + row:,} has id {chunk[row, column]:,} at position "
                f"{column:,}, beyond the vocabulary of {vocab_size:,} ids. A different tokenizer "
                f"made these shards, or model.vocab_size is too small."
            )


def _map_rows(
    path: str | Path, actual: int, dtype: np.dtype, offset: int, ids: int, seq_len: int
) -> np.ndarray:
    """Map the whole rows of a file of `actual` bytes whose header says that it has `ids` ids."""
    expected = offset + ids * dtype.itemsize
    if actual != expected:
        raise BadInput(
            f"{path}: {'truncated' if actual < expected else 'too long'}: its header says "
            f"{expected:,} bytes, the file has {actual:,}. Copy or download it again."
        )
    if ids < seq_len:  # an empty range can't be mapped
        return np.empty((0, seq_len), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(ids // seq_len, seq_len))
