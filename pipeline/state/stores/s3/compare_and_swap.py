"""The conditional write that decides between two writers, and the proof that a service honors it.

With `If-None-Match: *`, S3 refuses the write if the object exists. With `If-Match: <version>`, S3
refuses the write if the object has another version. So if two machines claim one run, only one of
them succeeds. Some services accept these headers and ignore them.
"""

import contextlib

from pion.errors import BadInput
from pipeline.state.stores.base import Conflict, Missing
from pipeline.state.stores.s3 import upload
from pipeline.state.stores.s3.bucket import Bucket


def compare_and_swap(bucket: Bucket, key: str, data: bytes, expected: str | None) -> str:
    """Replace version `expected` of `key` (None: nothing) and return the new version.

    If the object already has exactly `data`, this is success: an earlier try wrote it, and its
    acknowledgement was lost. So `data` must be unique. Raises `Conflict` when another version is
    there. HEAD's history of `write_id`s tells whether that version came after such a write.
    """
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
    try:
        return upload.put(bucket, key, data, **condition)
    except (Conflict, Missing):
        with contextlib.suppress(Missing):
            present, version = bucket.read_versioned(key)
            if present == data:
                return version
    raise Conflict(key, bucket.url)


def require_compare_and_swap(bucket: Bucket, key: str, version: str, data: bytes) -> None:
    """Raise `BadInput` unless the service honors both conditions.

    `key` must have `version`. At the end it has `data`.
    """
    _must_refuse(bucket, key, None, "If-None-Match")
    compare_and_swap(bucket, key, data, version)
    _must_refuse(bucket, key, version, "If-Match")


def _must_refuse(bucket: Bucket, key: str, expected: str | None, condition: str) -> None:
    try:
        compare_and_swap(bucket, key, b"refuse this", expected)
    except Conflict:
        return
    raise BadInput(
        f"{bucket.url} can't store a run, because {bucket.endpoint} ignores {condition}. Two "
        "machines could then both think that they own the run, and undo each other's work. Nothing "
        "was started. "
        "Use a store that honors conditional writes: AWS S3, Cloudflare R2, hf://user/repo, or "
        "file:///abs/folder on one machine."
    )
