"""A store in an S3 bucket, on AWS or any compatible service.

Conditional writes decide between writers. Large objects are uploaded in
parallel parts with checksums and downloaded in parallel ranges. Only the part or range that fails
is retried. Credentials, region and endpoint are the standard AWS ones: AWS_ACCESS_KEY_ID,
AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …
"""

import contextlib
import functools
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError, told
from pion.untrusted import LARGEST_RECORD
from pipeline.state.stores.base import (
    Conflict,
    Data,
    Entries,
    Entry,
    Missing,
    Names,
    Store,
    StoreError,
    check_count,
    check_key,
    is_key,
    too_large,
)
from pipeline.state.stores.clock import parse_date
from pipeline.state.stores.retry import T
from pipeline.state.stores.s3 import errors
from pipeline.state.stores.s3.bucket import PART_BYTES as UPLOAD_BYTES
from pipeline.state.stores.s3.bucket import Bucket, PartsUpload, check_bucket, field, open_ranges
from pipeline.state.stores.transfer import PART_BYTES, download_parallel

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_PIECE_BYTES = 1 << 20
# Tries of a conditional write, with each form of a version. One is not enough: what refused the
# write may be deleted since.
_SWAPS = 2
_READ_BACK = (
    "So Pion reads back all that it writes, and compares. Each save takes longer, and the service "
    "may charge for what is read"
)


class S3Store(Store):
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
        # Whether the service knows a version without quotes only; None: not known yet.
        self._bare_etags: bool | None = None
        self.url = self._bucket.url

    @classmethod
    def open(cls, rest: str) -> "S3Store":
        """Return the store that `bucket` or `bucket/prefix` names; nothing is requested.

        Raises `BadInput` for names that S3 or stores don't allow.
        """
        bucket, _, prefix = rest.rstrip("/").partition("/")
        check_bucket(bucket, f"store {'s3://' + rest!r}")
        with told(f"store {'s3://' + rest!r}: ", " Use s3://bucket/prefix."):
            return cls(bucket, check_key(prefix) if prefix else "")

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        return self._bucket.read_versioned(key, limit)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        return self._bucket.read_versioned(key)

    def write(self, key: str, data: Data) -> None:
        check_key(key)
        with open_ranges(data) as (size, read_range):
            if size < self._upload_bytes:
                self._bucket.put(key, read_range(0, size))
            else:
                PartsUpload(self._bucket, key, size, read_range, self._upload_bytes).send()

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store`. With `If-None-Match: *`, S3 refuses the write if the object exists. With
        `If-Match: <version>`, S3 refuses the write if the object has another version. Some services
        (Ceph's gateway) know a version only without the quotes in which they name it.

        If the object already has exactly `data`, this is success: an earlier try wrote it, and its
        acknowledgement was lost. So `data` must be unique. HEAD's history of `write_id`s tells
        whether another version came after such a write.

        A conflict therefore means that another writer has made progress, so whoever tries again
        after each conflict does not try for ever. A service that refuses the very version that it
        names is a `StoreError`.
        """
        forms = [False, True] if self._bare_etags is None else [self._bare_etags]
        for bare in forms * _SWAPS:
            try:
                version = self._bucket.put(key, data, **_condition(expected, bare=bare))
            except (Conflict, Missing):
                present, found = self._present(key)
                if present == data and found is not None:
                    return found
                if found != expected:
                    raise Conflict(key, self.url) from None
            else:
                if expected is not None:
                    self._bare_etags = bare
                return version
        name = "If-None-Match" if expected is None else "If-Match"
        reason = f"{self._bucket.endpoint} refuses a write with {name} although its condition holds"
        raise StoreError("write", f"{self.url}/{key}", reason)

    def delete(self, key: str) -> None:
        bucket, name = self._bucket.name, self._bucket.object_name(key)
        with contextlib.suppress(Missing):
            self._bucket.request(
                "delete", key, lambda client: client.delete_object(Bucket=bucket, Key=name)
            )

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        name = self._bucket.object_name(key)
        size, version, first = self._bucket.request(
            "read", key, lambda client: self._open(client, name)
        )
        unread = [first] if first is not None else []

        def retry(call: Callable[[], T]) -> T:
            return self._bucket.request("read", key, lambda client: call())

        def fetch(start: int, stop: int) -> Iterable[bytes]:
            if start == 0 and unread:
                body = unread.pop()
            else:
                client = self._bucket.client
                *_, body = self._bucket.open_range(client, name, start, stop, IfMatch=version)
            with contextlib.closing(body):
                yield from body.iter_chunks(_PIECE_BYTES)

        try:
            if limit is not None and size > limit:
                raise too_large(f"{self.url}/{key}", limit)
            return download_parallel(fetch, size, path, retry, self._download_bytes)
        except Conflict as error:
            reason = "the file was replaced during the download; run the same command again"
            raise StoreError("read", f"{self.url}/{key}", reason, outage=True) from error
        finally:
            for body in unread:
                body.close()

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        bucket, root = self._bucket, self._bucket.root

        def unfinished(client: "S3Client") -> list[tuple[str, str]]:
            pages = client.get_paginator("list_multipart_uploads")
            return [
                (field(upload, "Key"), field(upload, "UploadId"))
                for page in pages.paginate(Bucket=bucket.name, Prefix=root + prefix)
                if field(page, "IsTruncated") is not None
                for upload in page.get("Uploads", [])
                if field(upload, "Initiated").timestamp() < before
            ]

        uploads = bucket.request("list", prefix, unfinished)
        for name, upload_id in uploads:
            abort = functools.partial(bucket.abort, name=name, upload_id=upload_id)
            bucket.request("delete", name.removeprefix(root), abort)
        return len(uploads)

    def list(self, prefix: str = "") -> Entries:
        if parent := prefix.rpartition("/")[0]:
            check_key(parent)
        entries = itertools.chain.from_iterable(self._bucket.pages(prefix, self._entries))
        return sorted(entries, key=lambda entry: entry.key)

    def folders(self) -> Names:
        skip = len(self._bucket.root)

        def read(page: Mapping[str, Any]) -> tuple[Names, int]:
            below = page.get("CommonPrefixes", [])
            names = [field(folder, "Prefix")[skip:].rstrip("/") for folder in below]
            return names, len(names) + len(page.get("Contents", []))

        folder_names: Names = []
        seen = 0
        for names, count in self._bucket.pages("", read, Delimiter="/"):
            folder_names += names
            seen += count
            check_count(seen, self.url, f"{self.url}/runs")
        return sorted(name for name in folder_names if is_key(name))

    def service_time(self) -> float | None:
        """Return Unix seconds by the service's clock; None if its answer has no readable date.

        An answer that refuses the request because this machine's clock is wrong has a date too.
        Raises `StoreError`.
        """
        bucket = self._bucket

        def ask(client: "S3Client") -> float | None:
            try:  # a HEAD request would be cheaper, but its errors give no reason
                page = client.list_objects_v2(Bucket=bucket.name, Prefix=bucket.root, MaxKeys=1)
                answer = page["ResponseMetadata"]
            except client.exceptions.ClientError as error:
                if errors.code_of(error) not in errors.CLOCK:
                    raise
                answer = error.response["ResponseMetadata"]
            return parse_date(answer["HTTPHeaders"].get("date"))

        return bucket.request("read the time of", "", ask)

    def probe(self, prefix: str) -> str:
        """See `Store`. Makes twelve requests. Raises `StoreError`, not `BadInput`, if the store is
        down."""
        key = f"{prefix}probe-{uuid.uuid4().hex}"
        try:
            first = self.compare_and_swap(key, b"first", None)
            try:
                self._must_refuse(key, None, "If-None-Match")
                second = self.compare_and_swap(key, b"second", first)
                self._must_refuse(key, first, "If-Match")
                if self.list(key) != [Entry(key, 6)] or self.read(key) != b"second":
                    raise StoreError(
                        "use", self.url, "Pion wrote a test object but could not read it back"
                    )
                self.sweep_unfinished(key, before=0.0)
                self.delete(key)
                self._must_refuse(key, second, "If-Match once an object is deleted")
            except BaseException:
                with contextlib.suppress(PionError):
                    self.delete(key)
                raise
        except (Conflict, Missing) as error:
            raise BadInput(f"{self.url} loses written objects: {error}") from error
        except StoreError as error:
            if error.outage:
                raise
            raise BadInput(f"{error} Nothing was started.") from error
        if self._bucket.checksums:
            return ""
        return f"{self._bucket.endpoint} refuses checksums. {_READ_BACK}"

    def _present(self, key: str) -> tuple[bytes | None, str | None]:
        """Return the content of `key` and its version; (None, None) if there is nothing."""
        try:
            return self.read_versioned(key)
        except Missing:
            return None, None

    def _must_refuse(self, key: str, expected: str | None, condition: str) -> None:
        """Raise `BadInput` unless the service refuses a write whose condition does not hold."""
        try:
            self.compare_and_swap(key, b"refuse this", expected)
        except Conflict:
            return
        raise BadInput(
            f"{self.url} can't store a run, because {self._bucket.endpoint} ignores {condition}. "
            "Two machines could then both think that they own the run, and undo each other's work. "
            "Nothing was started. "
            "Use a store that honors conditional writes: AWS S3, Cloudflare R2, hf://user/repo, or "
            "file:///abs/folder on one machine."
        )

    def _open(self, client: "S3Client", name: str) -> tuple[int, str, Any]:
        """Return as `Bucket.open_range` the first range of an object. A HEAD request would say
        its size and version, too, but its errors give no reason."""
        try:
            return self._bucket.open_range(client, name, 0, self._download_bytes)
        except client.exceptions.ClientError as error:
            if errors.status_of(error) == 416:  # an empty object has no first byte
                return 0, "", None
            raise

    def _entries(self, page: Mapping[str, Any]) -> Entries:
        """Return the objects of a page of a list."""
        root = self._bucket.root
        entries = (
            Entry(field(item, "Key").removeprefix(root), field(item, "Size"))
            for item in page.get("Contents", [])
        )
        # Consoles mark folders with empty objects.
        return [entry for entry in entries if entry.key and not entry.key.endswith("/")]


def _condition(expected: str | None, *, bare: bool) -> dict[str, str]:
    if expected is None:
        return {"IfNoneMatch": "*"}
    return {"IfMatch": expected.strip('"') if bare else expected}
