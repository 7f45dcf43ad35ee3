"""The environment and the folder that keep a run's Ray from others."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.workers.ray_workers import (
    LONGEST_SOCKET,
    RAY_FOLDER,
    private_environment,
    session_folder,
)

SOCKET = f"{RAY_FOLDER}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def test_each_session_has_another_token_and_no_token_of_the_environment() -> None:
    given = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "known",
        "RAY_AUTH_TOKEN_PATH": "/known",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "HOME": "/root",
    }
    first, second = private_environment(given), private_environment(given)
    assert len(bytes.fromhex(first["RAY_AUTH_TOKEN"])) == 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN_PATH" not in first
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert first["HOME"] == "/root"
    assert given["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("length", [4, 20, 23, 24, 39, 40, 200])
def test_rays_sockets_fit_below_any_temporary_folder(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as short:
        folder = Path(short)
        if length > 4:
            folder = Path(short, "x" * (length - len(short) - 1))
            folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        session = session_folder()
        try:
            assert len(str(session / SOCKET)) <= LONGEST_SOCKET
            assert session.parent == (folder if length <= 23 else Path("/tmp"))
            assert stat.S_IMODE(session.stat().st_mode) == 0o700
        finally:
            session.rmdir()


def test_a_temporary_folder_that_is_not_there_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no-such")
    with pytest.raises(BadInput, match=r"/no-such can't be written.*TMPDIR.*at most 23 bytes"):
        session_folder()
