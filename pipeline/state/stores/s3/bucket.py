"""Requests to one S3 bucket: the client, retries, and errors as `StoreError`s."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader

from pion.errors import BadInput, PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.console.masking import refuse_endpoint
from pipeline.state.stores.base import Conflict, Missing, StoreError, check_key, too_large
from pipeline.state.stores.clock import parse_date
from pipeline.state.stores.retry import retrying
from pipeline.state.stores.s3 import errors

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_SECONDS = 10
READ_SECONDS = 60
_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20

T = TypeVar("T")


class Bucket:
    """The part of bucket `name` below `prefix`. Threads may share it. It connects on first use."""

    def __init__(self, name: str, prefix: str, sleep: Callable[[float], None]) -> None:
        self.name = name
        self.url = f"s3://{name}/{prefix}".rstrip("/")
        self.root = f"{prefix}/" if prefix else ""
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self.bare_etags: bool | None = None
        """Whether the service knows a version without quotes only; None: not known yet."""

    def object_name(self, key: str) -> str:
        """Return the object name of `key` in the bucket. Raises `BadInput` for an illegal key."""
        return self.root + check_key(key)

    def request(self, action: str, key: str, call: "Callable[[S3Client], T]") -> T:
        """Return what `call` returns, with retries.

        Raises `Missing`, `Conflict` when a condition does not hold, and `StoreError`.
        """
        try:
            return self.retry(lambda: call(self.client))
        except errors.ERRORS as error:
            raise self.explained(error, action, key) from error

    def read_versioned(self, key: str, limit: int = LARGEST_RECORD) -> tuple[bytes, str]:
        """Return the content of `key` and its version.

        Raises `Missing`, `StoreError`, and `Damaged` if there are more than `limit` bytes.
        """
        name = self.object_name(key)

        def get(client: "S3Client") -> tuple[bytes, str]:
            answer = client.get_object(Bucket=self.name, Key=name)
            version = errors.field(answer, "ETag")
            content = bytearray()
            with contextlib.closing(answer["Body"]) as body:
                for piece in body.iter_chunks(_PIECE_BYTES):
                    content += piece
                    if len(content) > limit:
                        raise too_large(f"{self.url}/{key}", limit)
            return bytes(content), version

        return self.request("read", key, get)

    def service_time(self) -> float | None:
        """Return Unix seconds by the service's clock; None if its answer has no readable date.

        An answer that refuses the request because this machine's clock is wrong has a date too.
        Raises `StoreError`.
        """

        def ask(client: "S3Client") -> float | None:
            try:  # a HEAD request would be cheaper, but its errors give no reason
                page = client.list_objects_v2(Bucket=self.name, Prefix=self.root, MaxKeys=1)
                answer = page["ResponseMetadata"]
            except client.exceptions.ClientError as error:
                if errors.code_of(error) not in errors.CLOCK:
                    raise
                answer = error.response["ResponseMetadata"]
            return parse_date(answer["HTTPHeaders"].get("date"))

        return self.request("read the time of", "", ask)

    def retry(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, with retries while its errors are transient. Raises the last
        error."""

        def attempt() -> T:
            try:
                return call()
            except errors.ERRORS as error:
                if errors.code_of(error) in errors.EXPIRED:
                    self._client = None  # the next try reads the credentials again
                raise

        return retrying(
            attempt,
            errors.is_transient,
            retry_after=errors.retry_after,
            sleep=self._sleep,
        )

    def explained(self, error: Exception, action: str, key: str) -> PionError:
        """Return the exception that `request` raises for that error."""
        if errors.code_of(error) == "NoSuchKey":
            return Missing(key, self.url)
        if errors.status_of(error) == 412:
            return Conflict(key, self.url)
        reason = errors.explain(error, self.name, self.endpoint)
        where = f"{self.url}/{key}".rstrip("/")
        return StoreError(action, where, reason, outage=errors.is_outage(error))

    @property
    def client(self) -> "S3Client":
        with self._lock:
            if self._client is None:
                self._client = _connect()
            return self._client

    @property
    def endpoint(self) -> str:
        """The host and port that requests go to."""
        client = self._client
        url = urlsplit(client.meta.endpoint_url if client else "")
        return url.netloc.rpartition("@")[2] or "the store"


def region_name() -> str | None:
    """Return the region that AWS_REGION, AWS_DEFAULT_REGION or the profile names, if any does."""
    return os.environ.get("AWS_REGION") or boto3.Session().region_name


@functools.cache
def _descriptions() -> Loader:
    """Return the SDK's service descriptions. Reading them takes longer than creating a client."""
    return Loader()


def _connect() -> "S3Client":
    """Return a client that never retries by itself: only `retrying` does."""
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
