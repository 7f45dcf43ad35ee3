"""SkyPilot is refused with a reason where it can't work."""

from __future__ import annotations

import pwd

import pytest

from pion.errors import BadInput
from pipeline.rent.skypilot import sky_module


def test_a_user_without_a_name_is_told_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(BadInput, match=r"has none for user \d+\. Set USER=NAME"):
        sky_module()
