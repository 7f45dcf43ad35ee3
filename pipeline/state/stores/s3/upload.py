"""Send objects to an S3 bucket with checksums; large ones in parallel parts, tried one by one."""

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
from pipeline.state.stores.s3.errors import ERRORS

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_THREADS = 6


def put(bucket: Bucket, key: str, data: bytes, **condition: Any) -> str:
    """Store `data` by one request and return its version.

    `condition`: IfMatch or IfNoneMatch; raises `Conflict` or `Missing` when it does not hold.
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
        return answer["ETag"]

    return bucket.request("write", key, send)


def write(bucket: Bucket, key: str, data: Data, part_bytes: int) -> None:
    """Store `data`, in parts of `part_bytes` if it is that large. Copies 6 parts at a time."""
    bucket.object_name(key)
    with _open_ranges(data) as (size, read_range):
        if size < part_bytes:
            put(bucket, key, read_range(0, size))
        else:
            _write_parts(bucket, key, size, read_range, part_bytes)


def abort(bucket: Bucket, name: str, upload_id: str) -> "Callable[[S3Client], None]":
    """The request that drops an unfinished upload and its parts; none there is fine."""

    def send(client: "S3Client") -> None:
        with contextlib.suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=bucket.name, Key=name, UploadId=upload_id)

    return send


def _write_parts(
    bucket: Bucket,
    key: str,
    size: int,
    read_range: Callable[[int, int], bytes],
    part_bytes: int,
) -> None:
    name, mark = bucket.object_name(key), uuid.uuid4().hex
    part_bytes = max(part_bytes, -(-size // _MOST_PARTS))

    def begin(client: "S3Client") -> str:
        answer = client.create_multipart_upload(
            Bucket=bucket.name, Key=name, ChecksumAlgorithm="CRC32", Metadata={"upload": mark}
        )
        return answer["UploadId"]

    upload_id = bucket.request("write", key, begin)

    def send_part(start: int) -> dict[str, Any]:
        data = read_range(start, min(start + part_bytes, size))
        number, checksum = start // part_bytes + 1, _crc32(data)

        def send(client: "S3Client") -> dict[str, Any]:
            answer = client.upload_part(
                Bucket=bucket.name,
                Key=name,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=checksum,
            )
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

        return bucket.request("write", key, send)

    def complete(client: "S3Client") -> None:
        try:
            client.complete_multipart_upload(
                Bucket=bucket.name,
                Key=name,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except client.exceptions.NoSuchUpload:
            # An earlier try may have completed it, its acknowledgement being lost.
            if not _is_marked(client, bucket.name, name, mark):
                raise

    try:
        with ThreadPoolExecutor(_THREADS, "upload") as pool:
            parts: Any = list(pool.map(send_part, range(0, size, part_bytes)))
        bucket.request("write", key, complete)
    except BaseException:
        with contextlib.suppress(*ERRORS):
            abort(bucket, name, upload_id)(bucket.client)
        raise


def _is_marked(client: "S3Client", bucket: str, name: str, mark: str) -> bool:
    try:
        answer = client.get_object(Bucket=bucket, Key=name, Range="bytes=0-0")
    except client.exceptions.NoSuchKey:
        return False
    answer["Body"].close()
    return answer["Metadata"].get("upload") == mark


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


@contextlib.contextmanager
def _open_ranges(data: Data) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
    """The size of `data` and a function that copies a range of it; any thread may call it."""
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
                raise StoreError("read", str(path), "it became shorter while it was being sent")
            pieces.append(piece)
            start += len(piece)
    return b"".join(pieces)
