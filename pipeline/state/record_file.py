"""One JSON record in a store: read it strictly, and replace it by compare-and-swap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pion.errors import BadInput
from pipeline.state.record_json import FORMAT, Damaged, build, parse, to_json
from pipeline.state.stores import Conflict, Missing, Store, StoreError

T = TypeVar("T")
Absent = TypeVar("Absent")
# Reads a record in bytes of the file that the text names. Raises `Damaged` and `BadInput`.
Load = Callable[[bytes, str], T]


def strictly(kind: type[T], version: int = FORMAT) -> Load[T]:
    """Return what reads a record of the dataclass or TypedDict `kind`, of this format version."""
    return lambda data, where: build(kind, parse(data, where, (version,)), where)


def dump_record(record: Any) -> bytes:
    """Return the file of a dataclass, with a format version."""
    return to_json({"format": FORMAT, **dataclasses.asdict(record)}).encode()


class RecordFile(Generic[T]):
    """The record under `key` of a store, as `load` reads it and `dump` writes it.

    If the record is damaged, the error ends with `advice`: a sentence that says what to do.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        load: Load[T],
        dump: Callable[[T], bytes] = dump_record,
        advice: str = "",
    ) -> None:
        self._store, self._key = store, key
        self._load, self._dump, self._advice = load, dump, advice

    def read(self, *, as_none: type[BadInput] | tuple[()] = ()) -> tuple[T | None, str | None]:
        """Return the record and its version in the store; (None, None) if there is none.

        Of a record that can't be read for a reason in `as_none`, only the version is returned. Else
        raises `Damaged`, or `BadInput` for another format version; and `StoreError`.
        """
        try:
            data, version = self._store.read_versioned(self._key)
        except Missing:
            return None, None
        except Damaged as error:  # not even its bytes can be read
            raise self._with_advice(error) from error
        try:
            return self._load(data, f"{self._store.url}/{self._key}"), version
        except as_none:
            return None, version
        except Damaged as error:
            raise self._with_advice(error) from error

    def _with_advice(self, error: Damaged) -> Damaged:
        return Damaged(f"{error} {self._advice}".rstrip())

    def read_if_readable(self) -> tuple[T | None, str | None]:
        """Return the record and its version; a record that can't be read counts as none. It is a
        courtesy, which must not end a command. Raises `StoreError`."""
        try:
            return self.read(as_none=BadInput)
        except BadInput:  # not even its bytes
            return None, None

    def write(self, record: T) -> None:
        """Write the record, whatever is there, so that all see it. Raises `StoreError`."""
        self._store.write(self._key, self._dump(record))
        self._store.flush()

    def swap(
        self, record: T, version: str | None, is_mine: Callable[[T], bool] | None = None
    ) -> bool:
        """Replace `version` (None: nothing there yet) by the record; return False if the store has
        another version.

        The write of a lost acknowledgement counts as made: after an error, the store's record is
        read again, and `is_mine` says whether it is this one or one that followed (None: it is
        equal). Raises `StoreError` if it is not.
        """
        try:
            self._store.compare_and_swap(self._key, self._dump(record), version)
        except (Conflict, StoreError) as error:
            present, _ = self.read_if_readable()
            if present is not None and (is_mine(present) if is_mine else present == record):
                return True
            if isinstance(error, StoreError):
                raise
            return False
        return True

    def change(
        self,
        change: Callable[[T | Absent], T],
        absent: Absent,
        *,
        as_none: type[BadInput] | tuple[()] = (),
    ) -> T:
        """Replace the record by what `change` makes of it, and return the result.

        `change` gets `absent` if there is no record. If another process writes in between, `change`
        gets the other record. If it changes nothing, nothing is written. Raises as `read` and
        `swap` do.
        """
        while True:
            present, version = self.read(as_none=as_none)
            before = absent if present is None else present
            wanted = change(before)
            if wanted == before or self.swap(wanted, version):
                return wanted
