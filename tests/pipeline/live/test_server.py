"""`pion status RUN… --web`: what it refuses before it starts, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipeline.live.server import MOST_RUNS, page_of
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.web.address import API_KEY, Address
from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run
from tests.support.waiting import PATIENCE_SECONDS, read_until, rest_of, wait_until


def test_the_page_is_there_until_sigterm_and_needs_no_skypilot(here: Path) -> None:
    make_run(here / "runs", saves=[])
    code = (
        "import sys; sys.modules['sky'] = None; from pipeline.cli import main; sys.exit(main("
        "['status', 'demo', '--web', '--port', '0']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        url = read_until(process, "the page").split()[0]
        assert "<title>Pion</title>" in httpx.get(url, timeout=PATIENCE_SECONDS).text
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in rest_of(process)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing", "--web"), "no run 'nothing' in the store"),
        (("--web",), "--web needs the names of 1 to 8 runs"),
        (("demo",) * (MOST_RUNS + 1) + ("--web",), "--web needs the names of 1 to 8 runs"),
        (("demo", "demo", "--web"), "a run is named twice"),
        (("demo", "--web", "--json"), "Leave out --json"),
        (("demo", "--port", "8009"), "Add --web"),
        (("demo", "--web", "--host", "0.0.0.0"), API_KEY),
    ],
)
def test_what_can_t_be_shown_is_refused(
    arguments: tuple[str, ...], words: str, here: Path, pion: Pion
) -> None:
    make_run(here / "runs", saves=[])
    code, _, error = pion("status", *arguments)
    assert code == 2
    assert words in error


def test_a_port_in_use_is_refused_before_a_run_is_looked_for(pion: Pion, here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = pion("status", "nowhere", "--web", "--port", str(port))
    assert code == 2
    assert f"port {port} is in use" in error


def test_the_page_next_to_a_command_shows_a_run_that_has_not_begun(tmp_path: Path) -> None:
    with page_of(RunState(FileStore(tmp_path / "runs"), "demo"), Address(port=0)) as url:

        def trouble() -> str:
            return str(
                httpx.get(f"{url}/data", timeout=PATIENCE_SECONDS).json()["runs"][0]["trouble"]
            )

        wait_until(lambda: "has not begun" in trouble(), trouble)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=PATIENCE_SECONDS)
