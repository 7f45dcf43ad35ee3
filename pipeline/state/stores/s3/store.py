"""A store in an S3 bucket, on AWS or any compatible service.

Conditional writes decide between writers (compare_and_swap.py). Large objects are uploaded in
parallel parts with checksums and downloaded in parallel ranges. Only the part or range that fails
is retried. Credentials, region and endpoint are the standard AWS ones: AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …
"""

import contextlib
import functools
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.state.stores.base import (
    Conflict,
    Data,
    Entries,
    Entry,
    Missing,
    StoreError,
    WritesAtOnce,
    check_key,
    too_large,
)
from pipeline.state.stores.s3 import errors
from pipeline.state.stores.s3.bucket import PART_BYTES as UPLOAD_BYTES
from pipeline.state.stores.s3.bucket import Bucket
from pipeline.state.stores.s3.compare_and_swap import compare_and_swap, require_compare_and_swap
from pipeline.state.stores.transfer import PART_BYTES, download_parallel

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_PIECE_BYTES = 1 << 20
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class _Opened:
    """A range of an object that is being read, and what its answer says of the whole object."""

    size: int
    version: str
    body: Any


class S3Store(WritesAtOnce):
    """Keys are objects below `prefix` in `bucket`. Safe with any number of processes and threads.

    Objects of `upload_bytes` or more are uploaded in parts of that size. All objects are downloaded
    in ranges of `download_bytes`. `sleep` waits before a failed request is retried.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        upload_bytes: int = UPLOAD_BYTES,
        download_bytes: int = PART_BYTES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = Bucket(bucket, prefix, sleep)
        self._upload_bytes, self._download_bytes = upload_bytes, download_bytes
        self.url = self._bucket.url

    @classmethod
    def open(cls, rest: str) -> "S3Store":
        """Return the store that `bucket` or `bucket/prefix` names; nothing is requested.

        Raises `BadInput` for names that S3 or stores don't allow.
        """
        bucket, _, prefix = rest.rstrip("/").partition("/")
        if not _BUCKET_NAME.fullmatch(bucket) or ".." in bucket:
            raise BadInput(
                f"store {'s3://' + rest!r}: {bucket!r} can't be a bucket's name. Use "
                "s3://bucket/prefix, where the bucket's name is 3 to 63 lower-case letters, "
                "digits, dots and dashes."
            )
        try:
            return cls(bucket, check_key(prefix) if prefix else "")
        except BadInput as error:
            raise BadInput(f"store {'s3://' + rest!r}: {error} Use s3://bucket/prefix.") from None

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        return self._bucket.read_versioned(key, limit)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        return self._bucket.read_versioned(key)

    def write(self, key: str, data: Data) -> None:
        self._bucket.upload(key, data, self._upload_bytes)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        return compare_and_swap(self._bucket, key, data, expected)

    def delete(self, key: str) -> None:
        bucket, name = self._bucket.name, self._bucket.object_name(key)
        with contextlib.suppress(Missing):
            self._bucket.request(
                "delete", key, lambda client: client.delete_object(Bucket=bucket, Key=name)
            )

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        name = self._bucket.object_name(key)
        first = self._bucket.request("read", key, lambda client: self._open(client, name))
        unread = [first.body] if first.body is not None else []

        def fetch(start: int, stop: int) -> Iterable[bytes]:
            if start == 0 and unread:
                body = unread.pop()
            else:
                body = self._open_range(
                    self._bucket.client, name, start, stop, IfMatch=first.version
                ).body
            with contextlib.closing(body):
                yield from body.iter_chunks(_PIECE_BYTES)

        size = first.size
        try:
            if limit is not None and size > limit:
                raise too_large(f"{self.url}/{key}", limit)
            return download_parallel(fetch, size, path, self._bucket.retry, self._download_bytes)
        except errors.ERRORS as error:
            explained = self._bucket.explained(error, "read", key)
            if isinstance(explained, Conflict):
                reason = "the file was replaced during the download; run the same command again"
                explained = StoreError("read", f"{self.url}/{key}", reason, outage=True)
            raise explained from error
        finally:
            for body in unread:
                body.close()

    def local_path(self, key: str) -> Path | None:
        return None

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        bucket, root = self._bucket, self._bucket.root

        def unfinished(client: "S3Client") -> list[tuple[str, str]]:
            pages = client.get_paginator("list_multipart_uploads")
            return [
                (errors.field(upload, "Key"), errors.field(upload, "UploadId"))
                for page in pages.paginate(Bucket=bucket.name, Prefix=root + prefix)
                if errors.field(page, "IsTruncated") is not None
                for upload in page.get("Uploads", [])
                if errors.field(upload, "Initiated").timestamp() < before
            ]

        uploads = bucket.request("list", prefix, unfinished)
        for name, upload_id in uploads:
            key = name.removeprefix(root)
            abort = functools.partial(bucket.abort, name=name, upload_id=upload_id)
            bucket.request("delete", key, abort)
        return len(uploads)

    def list(self, prefix: str = "") -> Entries:
        parent = prefix.rpartition("/")[0]
        if parent:
            check_key(parent)
        entries: list[Entry] = []
        more: dict[str, Any] = {}
        while True:
            some, token = self._bucket.request("list", prefix, self._list_page(prefix, more))
            entries += some
            if token is None:
                return sorted(entries, key=lambda entry: entry.key)
            more = {"ContinuationToken": token}

    def service_time(self) -> float | None:
        return self._bucket.service_time()

    def probe(self, prefix: str) -> None:
        """See `Store`. Makes ten requests. Raises `StoreError`, not `BadInput`, if the store is
        down."""
        key = f"{prefix}probe-{uuid.uuid4().hex}"
        try:
            first = self.compare_and_swap(key, b"first", None)
            try:
                require_compare_and_swap(self._bucket, key, first, b"second")
                if self.list(key) != [Entry(key, 6)] or self.read(key) != b"second":
                    raise StoreError(
                        "use", self.url, "Pion wrote a test object but could not read it back"
                    )
                self.sweep_unfinished(key, before=0.0)
            except BaseException:
                with contextlib.suppress(PionError):
                    self.delete(key)
                raise
            self.delete(key)
        except (Conflict, Missing) as error:
            raise BadInput(f"{self.url} loses written objects: {error}") from error
        except StoreError as error:
            if error.outage:
                raise
            raise BadInput(f"{error} Nothing was started.") from error

    def _open(self, client: "S3Client", name: str) -> "_Opened":
        """Return the first range of an object. It says the object's size and version, too. A HEAD
        request would not, and its errors give no reason."""
        try:
            return self._open_range(client, name, 0, self._download_bytes)
        except client.exceptions.ClientError as error:
            if errors.status_of(error) == 416:  # an empty object has no first byte
                return _Opened(0, "", None)
            raise

    def _open_range(
        self, client: "S3Client", name: str, start: int, stop: int, **condition: str
    ) -> "_Opened":
        answer = client.get_object(
            Bucket=self._bucket.name, Key=name, Range=f"bytes={start}-{stop - 1}", **condition
        )
        try:
            range_, _, size = errors.field(answer, "ContentRange").rpartition("/")
            if not range_.startswith(f"bytes {start}-") or not size.isdecimal():
                raise errors.NotFromS3("matching ContentRange")
            return _Opened(int(size), errors.field(answer, "ETag"), answer["Body"])
        except errors.NotFromS3:
            answer["Body"].close()
            raise

    def _list_page(
        self, prefix: str, more: dict[str, Any]
    ) -> "Callable[[S3Client], tuple[Entries, str | None]]":
        """Return the request for one page of a list: its objects, and where the next one begins."""
        root, bucket = self._bucket.root, self._bucket.name

        def list_page(client: "S3Client") -> tuple[Entries, str | None]:
            page = client.list_objects_v2(Bucket=bucket, Prefix=root + prefix, **more)
            entries = []
            for item in page.get("Contents", []):
                key = errors.field(item, "Key").removeprefix(root)
                if key and not key.endswith("/"):  # consoles mark folders with empty objects
                    entries.append(Entry(key, errors.field(item, "Size")))
            if not errors.field(page, "IsTruncated"):
                return entries, None
            return entries, errors.field(page, "NextContinuationToken")

        return list_page
