"""Requests to one S3 bucket: the client, retries, errors as `StoreError`s, and uploads.

What goes up has checksums. Where the service refuses checksums, what went up is read back and
compared. Large objects go in parallel parts, each with retries.
"""

import base64
import contextlib
import functools
import os
import re
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from pion.errors import BadInput, PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.console.masking import refuse_endpoint
from pipeline.state.stores.base import Conflict, Data, Missing, StoreError, check_key, too_large
from pipeline.state.stores.local import explained
from pipeline.state.stores.retry import T, retrying
from pipeline.state.stores.s3 import errors

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_SECONDS = 10
READ_SECONDS = 60
_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20
PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_UPLOADS = 6
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

# Copies the bytes from start up to stop; any thread may call it.
ReadRange = Callable[[int, int], bytes]


class Bucket:
    """The part of bucket `name` below `prefix`. Threads may share it. It connects on first use.
    Who is denied access reads which `rights` are needed."""

    def __init__(
        self,
        name: str,
        prefix: str,
        sleep: Callable[[float], None],
        rights: str = errors.ALL_RIGHTS,
    ) -> None:
        self.name, self._rights = name, rights
        self.url = f"s3://{name}/{prefix}".rstrip("/")
        self.root = f"{prefix}/" if prefix else ""
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self.checksums = True
        """Whether the service has refused no checksum so far."""

    def object_name(self, key: str) -> str:
        """Return the object name of `key` in the bucket. Raises `BadInput` for an illegal key."""
        return self.root + check_key(key)

    def request(self, action: str, key: str, call: "Callable[[S3Client], T]") -> T:
        """Return what `call` returns, with retries.

        Raises `Missing`, `Conflict` when a condition does not hold, and `StoreError`.
        """
        try:
            return retrying(
                functools.partial(self._attempt, call),
                errors.is_transient,
                retry_after=errors.retry_after,
                sleep=self._sleep,
            )
        except errors.ERRORS as error:
            raise self._explained(error, action, key) from error

    def _attempt(self, call: "Callable[[S3Client], T]") -> T:
        """Return what `call` returns, without checksums if the service refuses them."""
        try:
            return call(self.client)
        except errors.ERRORS as error:
            refused = errors.refuses_checksums(error)
            if refused or errors.code_of(error) in errors.EXPIRED:
                self._client = None  # the next try reads the credentials again
            if not refused:
                raise
            self.checksums = False
            return call(self.client)

    def read_versioned(self, key: str, limit: int = LARGEST_RECORD) -> tuple[bytes, str]:
        """Return the content of `key` and its version.

        Raises `Missing`, `StoreError`, and `Damaged` if there are more than `limit` bytes.
        """
        name = self.object_name(key)

        def get(client: "S3Client") -> tuple[bytes, str]:
            answer = client.get_object(Bucket=self.name, Key=name)
            version = field(answer, "ETag")
            content = bytearray()
            with contextlib.closing(answer["Body"]) as body:
                for piece in body.iter_chunks(_PIECE_BYTES):
                    content += piece
                    if len(content) > limit:
                        raise too_large(f"{self.url}/{key}", limit)
            return bytes(content), version

        return self.request("read", key, get)

    def open_range(
        self, client: "S3Client", name: str, start: int, stop: int, **condition: str
    ) -> tuple[int, str, Any]:
        """Return the size of the whole object, its version, and the body of the range."""
        answer = client.get_object(
            Bucket=self.name, Key=name, Range=f"bytes={start}-{stop - 1}", **condition
        )
        try:
            range_, _, size = field(answer, "ContentRange").rpartition("/")
            if not range_.startswith(f"bytes {start}-") or not size.isdecimal():
                raise errors.NotFromS3("matching ContentRange")
            return int(size), field(answer, "ETag"), answer["Body"]
        except errors.NotFromS3:
            answer["Body"].close()
            raise

    def pages(
        self, prefix: str, read: Callable[[Mapping[str, Any]], T], **options: str
    ) -> Iterator[T]:
        """Yield what `read` returns of each page of a list, of at most a thousand names."""
        begin = {"Bucket": self.name, "Prefix": self.root + prefix, **options}

        def ask(client: "S3Client") -> tuple[T, str | None]:
            page: Any = client.list_objects_v2(**begin)
            more = field(page, "NextContinuationToken") if field(page, "IsTruncated") else None
            return read(page), more

        while True:
            found, token = self.request("list", prefix, ask)
            yield found
            if token is None:
                return
            begin["ContinuationToken"] = token

    def put(self, key: str, data: bytes, **condition: Any) -> str:
        """Store `data` with one request and return its version.

        `condition` is IfMatch or IfNoneMatch. Raises `Conflict` or `Missing` when it does not hold.
        """
        name, checksum = self.object_name(key), _crc32(data)

        def send(client: "S3Client") -> str:
            sums: Any = checksum if self.checksums else {}
            answer = client.put_object(Bucket=self.name, Key=name, Body=data, **sums, **condition)
            return str(field(answer, "ETag"))

        version = self.request("write", key, send)
        if not self.checksums:
            stored, its_version = self.read_versioned(key, len(data))
            # After a conditional write, another writer may have replaced what we wrote.
            if stored != data and (not condition or its_version == version):
                raise self.altered(key)
        return version

    def altered(self, key: str) -> StoreError:
        """Return the error for an object that is not what was written."""
        reason = "what was read back differs from what was written"
        return StoreError("write", f"{self.url}/{key}", reason, outage=True)

    def abort(self, client: "S3Client", name: str, upload_id: str) -> None:
        """Delete the unfinished upload of an object and its parts, if they exist."""
        with contextlib.suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(Bucket=self.name, Key=name, UploadId=upload_id)

    def _explained(self, error: Exception, action: str, key: str) -> PionError:
        """Return the exception that `request` raises for that error."""
        if errors.code_of(error) == "NoSuchKey":
            return Missing(key, self.url)
        if errors.status_of(error) == 412:
            return Conflict(key, self.url)
        where = f"{self.url}/{key}".rstrip("/")
        reason = errors.explain(error, self.name, self.endpoint, self._rights)
        return StoreError(action, where, reason, outage=errors.is_outage(error))

    @property
    def client(self) -> "S3Client":
        with self._lock:
            if self._client is None:
                self._client = _connect(self.checksums)
            return self._client

    @property
    def endpoint(self) -> str:
        """The host and port that requests go to."""
        client = self._client
        url = urlsplit(client.meta.endpoint_url if client else "")
        return url.netloc.rpartition("@")[2] or "the store"


def check_bucket(name: str, where: str) -> None:
    """Raise BadInput that begins with `where`, if no bucket can have that name."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadInput(
            f"{where}: {name!r} can't be a bucket's name. Use s3://bucket/prefix, where the "
            "bucket's name is 3 to 63 lower-case letters, digits, dots and dashes."
        )


def field(answer: Mapping[str, Any], name: str) -> Any:
    """Return a field that every answer of S3 has. Raises `NotFromS3`."""
    try:
        return answer[name]
    except KeyError:
        raise errors.NotFromS3(name) from None


def region_name() -> str | None:
    """Return the region that AWS_REGION, AWS_DEFAULT_REGION or the profile names, if any does."""
    return os.environ.get("AWS_REGION") or boto3.Session().region_name


@functools.cache
def _descriptions() -> Loader:
    """Return the SDK's service descriptions. Reading them takes longer than creating a client."""
    return Loader()


def _connect(checksums: bool) -> "S3Client":
    """Return a client that never retries by itself: only `retrying` does. With `checksums`, the
    client asks for those of what it reads."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions())
    session = boto3.Session(botocore_session=core)
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1},
        # We send checksums as headers. The client would send trailers, and some servers don't
        # support trailers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported" if checksums else "when_required",
        tcp_keepalive=True,
    )
    try:
        client = session.client("s3", region_name=region_name() or "us-east-1", config=config)
        refuse_endpoint("the S3 endpoint (AWS_ENDPOINT_URL)", client.meta.endpoint_url)
        return client
    except ValueError as error:
        raise BadInput(
            "The S3 endpoint is not a URL: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL must look like "
            "https://host or http://host:port."
        ) from error


# ---------------------------------------------------------------- uploads in parts


class PartsUpload:
    """The upload of one large object in parts of at least `part_bytes`. Keeps 6 parts in memory.

    boto3's managed transfer is as fast, but when a token expires it begins again with the first
    part. Here, the next part reads the credentials again.
    """

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
        starts = range(0, self._size, self._part_bytes)
        try:
            with ThreadPoolExecutor(_UPLOADS, "upload") as pool:
                parts = list(pool.map(self._send_part, starts))
                bucket.request("write", key, lambda client: self._complete(client, parts))
                if not bucket.checksums and not all(pool.map(self._is_stored, starts)):
                    raise bucket.altered(key)
        except BaseException:
            with contextlib.suppress(*errors.ERRORS):
                bucket.abort(bucket.client, self._name, self._upload_id)
            raise

    def _begin(self, client: "S3Client") -> str:
        sums: Any = {"ChecksumAlgorithm": "CRC32"} if self._bucket.checksums else {}
        answer = client.create_multipart_upload(
            Bucket=self._bucket.name, Key=self._name, Metadata={"upload": self._mark}, **sums
        )
        return str(field(answer, "UploadId"))

    def _send_part(self, start: int) -> Any:
        """Upload the part that begins at `start`; return the part's entry for `_complete`."""
        data = self._read_range(start, min(start + self._part_bytes, self._size))
        number, checksum = start // self._part_bytes + 1, _crc32(data)

        def send(client: "S3Client") -> dict[str, Any]:
            sums: Any = checksum if self._bucket.checksums else {}
            answer = client.upload_part(
                Bucket=self._bucket.name,
                Key=self._name,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=data,
                **sums,
            )
            part = {"PartNumber": number, "ETag": field(answer, "ETag"), **sums}
            part.pop("ChecksumAlgorithm", None)
            return part

        return self._bucket.request("write", self._key, send)

    def _is_stored(self, start: int) -> bool:
        """Return whether the part that begins at `start` is what the completed object has there."""
        data = self._read_range(start, min(start + self._part_bytes, self._size))
        where = f"bytes={start}-{start + len(data) - 1}"

        def read(client: "S3Client") -> bytes:
            answer = client.get_object(Bucket=self._bucket.name, Key=self._name, Range=where)
            with contextlib.closing(answer["Body"]) as body:
                return body.read(len(data) + 1)

        return self._bucket.request("read back", self._key, read) == data

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


def _crc32(data: bytes) -> dict[str, str]:
    """Return the checksum of what a request sends, as its parameters."""
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": checksum}


@contextlib.contextmanager
def open_ranges(data: Data) -> Iterator[tuple[int, ReadRange]]:
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
