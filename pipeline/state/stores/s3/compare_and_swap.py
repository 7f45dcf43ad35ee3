"""The conditional write that decides between two writers, and the proof that a service honors it.

With `If-None-Match: *`, S3 refuses the write if the object exists. With `If-Match: <version>`, S3
refuses the write if the object has another version. So if two machines claim one run, only one of
them succeeds. Some services accept these headers and ignore them. Others (Ceph's gateway) know a
version only without the quotes in which they name it.
"""

from pion.errors import BadInput
from pipeline.state.stores.base import Conflict, Missing, StoreError
from pipeline.state.stores.s3.bucket import Bucket

# With each form of a version. One is not enough: what refused the write may be deleted since.
_TRIES = 2


def compare_and_swap(bucket: Bucket, key: str, data: bytes, expected: str | None) -> str:
    """Replace version `expected` of `key` (None: nothing) and return the new version.

    If the object already has exactly `data`, this is success: an earlier try wrote it, and its
    acknowledgement was lost. So `data` must be unique. Raises `Conflict` when another version is
    there. HEAD's history of `write_id`s tells whether that version came after such a write.

    A conflict therefore means that another writer has made progress, so whoever tries again after
    each conflict does not try for ever. A service that refuses the very version that it names is a
    `StoreError`.
    """
    forms = [bucket.bare_etags] if bucket.bare_etags is not None else [False, True]
    for bare in forms * _TRIES:
        try:
            version = bucket.put(key, data, **_condition(expected, bare=bare))
        except (Conflict, Missing):
            present, found = _read(bucket, key)
            if present == data and found is not None:
                return found
            if found != expected:
                raise Conflict(key, bucket.url) from None
        else:
            if expected is not None:
                bucket.bare_etags = bare
            return version
    name = "If-None-Match" if expected is None else "If-Match"
    reason = f"{bucket.endpoint} refuses a write with {name} although its condition holds"
    raise StoreError("write", f"{bucket.url}/{key}", reason)


def _condition(expected: str | None, *, bare: bool) -> dict[str, str]:
    if expected is None:
        return {"IfNoneMatch": "*"}
    return {"IfMatch": expected.strip('"') if bare else expected}


def _read(bucket: Bucket, key: str) -> tuple[bytes | None, str | None]:
    try:
        return bucket.read_versioned(key)
    except Missing:
        return None, None


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
