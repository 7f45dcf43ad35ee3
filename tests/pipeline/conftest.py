"""The command line as a function."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pipeline.cli import main
from pipeline.models.find import find_model

if TYPE_CHECKING:  # importing these takes seconds, and few tests need them
    pass

Pion = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pion(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub on loopback, which this process uses."""
    from tests.support.hub_server import hub_server

    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf")
        yield server


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A store with the run `demo`: a base model, and one fine-tuned on conversations."""
    from tests.support.finished_run import make_run

    folder = tmp_path_factory.mktemp("served")
    make_run(folder / "runs", seq_len=256)
    return folder / "runs"


@pytest.fixture(scope="session")
def served(run_folder):
    from tests.support.served import serving

    models = {
        "chat": find_model(f"{run_folder}/demo"),
        "base": find_model(f"{run_folder}/demo@pretrain"),
    }
    with serving(models, slots=8, queue=8) as server:
        yield server


@pytest.fixture(scope="session")
def client(served):
    return served.client()


@pytest.fixture(scope="module")
def browser():
    """A real browser. A test that uses it is marked with `needs_chromium`."""
    from tests.support.browser import chromium

    with chromium() as browser:
        yield browser
