"""Upload objects to an S3 bucket with checksums. Large objects go in parallel parts, each with
retries."""

import base64
import contextlib
import functools
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.state.stores.base import Data, StoreError
from pipeline.state.stores.local import explained
from pipeline.state.stores.s3.bucket import Bucket
from pipeline.state.stores.s3.errors import ERRORS, field

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_THREADS = 6

# Copies the bytes from start up to stop; any thread may call it.
ReadRange = Callable[[int, int], bytes]


def put(bucket: Bucket, key: str, data: bytes, **condition: Any) -> str:
    """Store `data` with one request and return its version.

    `condition` is IfMatch or IfNoneMatch. Raises `Conflict` or `Missing` when it does not hold.
    """
    name, checksum = bucket.object_name(key), _crc32(data)

    def send(client: "S3Client") -> str:
        answer = client.put_object(
            Bucket=bucket.name,
            Key=name,
            Body=data,
            ChecksumAlgorithm="CRC32",
            ChecksumCRC32=checksum,
            **condition,
        )
        return str(field(answer, "ETag"))

    return bucket.request("write", key, send)


def write(bucket: Bucket, key: str, data: Data, part_bytes: int) -> None:
    """Store `data`, in parts of `part_bytes` if it is that large. Keeps 6 parts in memory."""
    bucket.object_name(key)
    with _open_ranges(data) as (size, read_range):
        if size < part_bytes:
            put(bucket, key, read_range(0, size))
        else:
            _PartsUpload(bucket, key, size, read_range, part_bytes).send()


def abort(bucket: Bucket, name: str, upload_id: str) -> "Callable[[S3Client], None]":
    """Return the request that deletes an unfinished upload and its parts, if they exist."""

    def send(client: "S3Client") -> None:
        with contextlib.suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=bucket.name, Key=name, UploadId=upload_id)

    return send


class _PartsUpload:
    """The upload of one large object in parts of at least `part_bytes`."""

    def __init__(
        self, bucket: Bucket, key: str, size: int, read_range: ReadRange, part_bytes: int
    ) -> None:
        self._bucket, self._key, self._name = bucket, key, bucket.object_name(key)
        self._size, self._read_range = size, read_range
        self._part_bytes = max(part_bytes, -(-size // _MOST_PARTS))
        self._mark = uuid.uuid4().hex  # identifies the object of this upload
        self._upload_id = bucket.request("write", key, self._begin)

    def send(self) -> None:
        """Upload the parts in parallel and join them; delete them if an error occurs."""
        bucket, key = self._bucket, self._key
        try:
            with ThreadPoolExecutor(_THREADS, "upload") as pool:
                parts = list(pool.map(self._send_part, range(0, self._size, self._part_bytes)))
            bucket.request("write", key, lambda client: self._complete(client, parts))
        except BaseException:
            with contextlib.suppress(*ERRORS):
                abort(bucket, self._name, self._upload_id)(bucket.client)
            raise

    def _begin(self, client: "S3Client") -> str:
        answer = client.create_multipart_upload(
            Bucket=self._bucket.name,
            Key=self._name,
            ChecksumAlgorithm="CRC32",
            Metadata={"upload": self._mark},
        )
        return str(field(answer, "UploadId"))

    def _send_part(self, start: int) -> Any:
        """Upload the part that begins at `start`; return the part's entry for `_complete`."""
        data = self._read_range(start, min(start + self._part_bytes, self._size))
        number, checksum = start // self._part_bytes + 1, _crc32(data)

        def send(client: "S3Client") -> dict[str, Any]:
            answer = client.upload_part(
                Bucket=self._bucket.name,
                Key=self._name,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=checksum,
            )
            etag = field(answer, "ETag")
            return {"PartNumber": number, "ETag": etag, "ChecksumCRC32": checksum}

        return self._bucket.request("write", self._key, send)

    def _complete(self, client: "S3Client", parts: list[Any]) -> None:
        try:
            answer = client.complete_multipart_upload(
                Bucket=self._bucket.name,
                Key=self._name,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
            )
            field(answer, "ETag")
        except client.exceptions.NoSuchUpload:
            # An earlier try may have completed the upload, and its acknowledgement was lost.
            if not _is_marked(client, self._bucket.name, self._name, self._mark):
                raise


def _is_marked(client: "S3Client", bucket: str, name: str, mark: str) -> bool:
    try:
        answer = client.get_object(Bucket=bucket, Key=name, Range="bytes=0-0")
    except client.exceptions.NoSuchKey:
        return False
    answer["Body"].close()
    field(answer, "ETag")
    return answer["Metadata"].get("upload") == mark


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


@contextlib.contextmanager
def _open_ranges(data: Data) -> Iterator[tuple[int, ReadRange]]:
    """Yield the size of `data` and a function that copies a range of it."""
    if not isinstance(data, Path):
        view = memoryview(data).cast("B")
        yield len(view), lambda start, stop: bytes(view[start:stop])
        return
    with explained("read", data):
        file = data.open("rb")
    with file:
        size = os.fstat(file.fileno()).st_size
        yield size, functools.partial(_read_range, data, file.fileno())


def _read_range(path: Path, descriptor: int, start: int, stop: int) -> bytes:
    pieces = []
    with explained("read", path):
        while start < stop:
            piece = os.pread(descriptor, stop - start, start)
            if not piece:
                raise StoreError("read", str(path), "the file became shorter during its upload")
            pieces.append(piece)
            start += len(piece)
    return b"".join(pieces)
