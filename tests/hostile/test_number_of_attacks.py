"""How many attacks the tests of this folder make."""

from __future__ import annotations

from pathlib import Path

import pytest

LEAST = 300


class Counter:
    """A plugin of pytest that counts the collected tests."""

    count = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.count = len(session.items)


def test_at_least_300_attacks_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter()
    folder = str(Path(__file__).parent)
    code = pytest.main(["--collect-only", "-n", "0", "-p", "no:cacheprovider", folder], [counter])
    assert code == 0, capsys.readouterr().out[-2000:]
    assert counter.count >= LEAST
