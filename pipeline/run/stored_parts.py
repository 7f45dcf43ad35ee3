"""Finished parts of an evaluation, in the run's store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.state.claim import taken_over
from pipeline.state.patience import Patience
from pipeline.state.record_json import finite_json, parse_record
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing

Row = dict[str, Any]


@dataclass(frozen=True)
class StoredParts:
    """Finished parts of an evaluation, one write-once object each under its digest.

    Only the owner of the run adds parts. `session` identifies this process.
    """

    run: RunState
    digest: str
    session: str
    patiently: Patience

    def load(self, name: str) -> Row | None:
        try:
            return self._read(name, self.patiently(lambda: self.run.store.read(self._key(name))))
        except Missing:
            return None

    def save(self, name: str, result: Row) -> Row:
        """Keep a part and return it; if the part is already stored, return the stored one.

        The previous owner may have stored it just before the run was taken over. The two are
        equivalent. Raises Fenced, with nothing stored, if another process owns the run.
        """
        return self.patiently(lambda: self._save(name, result))

    def _save(self, name: str, result: Row) -> Row:
        head = self.run.read()  # the heartbeat notices a new owner only seconds later
        if head is None or not head.claims or head.claims[0].owner.session != self.session:
            raise taken_over(self.run, head)
        try:
            return self._read(name, self.run.store.read(self._key(name)))
        except Missing:
            written = finite_json(result).encode()
            self.run.store.write(self._key(name), written)
            return self._read(name, written)

    def _read(self, name: str, data: bytes) -> Row:
        return parse_record(data, f"{self.run.store.url}/{self._key(name)}")

    def _key(self, name: str) -> str:
        return self.run.key(f"stages/evaluate/{self.digest}-parts/{name}.json")
