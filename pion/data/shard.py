"""One file of training rows, as a data manifest describes it. Manifests may come from others."""

import re
from dataclasses import dataclass

_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file name: no folder, and no control characters.
_NAME = re.compile(r"[^/\x00-\x1f\x7f]+")
_DTYPE = re.compile(r"u?int(8|16|32|64)")


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``start + rows`` of one file.

    Attributes:
        name: file name, unique within its data set; its ending tells the format.
        sha256: of the whole file, although only some of its rows may belong to this data set.
        bytes: size of the whole file.
        dtype: numpy name of the ids' type.
        flags_sha256: of the flags file, for conversations.
        flags_bytes: size of the flags file.
        remote: where to fetch the file (``repo``, ``revision``, ``path``); None if it is local.

    Raises:
        ValueError: a field is not of its type, or no shard of Pion can have it.
    """

    name: str
    rows: int
    sha256: str
    bytes: int
    dtype: str
    start: int = 0
    flags_sha256: str | None = None
    flags_bytes: int = 0
    remote: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not _matches(_NAME, self.name) or self.name in (".", ".."):
            raise ValueError(f"{self.name!r:.200} is not the name of a shard")
        for name in ("rows", "bytes", "start", "flags_bytes"):
            require_count(name, getattr(self, name))
        for name in ("sha256", "flags_sha256"):
            value = getattr(self, name)
            if not (_matches(_SHA256, value) or (value is None and name == "flags_sha256")):
                raise ValueError(f"{name} is {value!r:.200}; it must be 64 hexadecimal digits")
        if not _matches(_DTYPE, self.dtype):
            raise ValueError(f"dtype is {self.dtype!r:.200}; it must be an integer type")
        if self.remote is not None:
            _check_remote(self.remote)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def require_count(name: str, value: object, least: int = 0) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`, below 2**63."""
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is {value!r:.200}; it must be a whole number from {least}")


def _check_remote(remote: object) -> None:
    """Raise ValueError unless there are the three texts, and the path stays in its repository."""
    keys = {"repo", "revision", "path"}
    if not isinstance(remote, dict) or remote.keys() != keys:
        raise ValueError(f"remote is {remote!r:.200}; it must have repo, revision and path")
    if not all(isinstance(text, str) for text in remote.values()):
        raise ValueError(f"remote is {remote!r:.200}; it must have texts")
    if {"", ".", ".."} & set(remote["path"].split("/")):
        raise ValueError(f"remote path {remote['path']!r:.200} leads out of its repository")
