"""Models to start from, prices of our own, and what `pion new` makes or refuses."""

from pathlib import Path

import pytest

from pipeline.base.job_with_base import read_job
from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.options import NewOptions
from pipeline.new.read import sample_of
from tests.pipeline.rent.conftest import cache_of_its_own, sky_home
from tests.support.chat_templates import CHATML
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.instruct_model import write_instruct_model

__all__ = ["cache_of_its_own", "sky_home"]


@pytest.fixture(autouse=True)
def _traces_are_recorded(recorded_traces):
    """What a job needs, which its price says, is a record for the models of these tests."""


@pytest.fixture(autouse=True)
def quick_renderer(monkeypatch):
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)


@pytest.fixture(scope="package")
def plain_base(tmp_path_factory):
    """A model without a chat template."""
    return write_instruct_model(tmp_path_factory.mktemp("plain") / "base", "gpt2", None)


@pytest.fixture(scope="package")
def chat_base(tmp_path_factory):
    """A model with a chat template."""
    return write_instruct_model(tmp_path_factory.mktemp("chat") / "base", "smollm2", CHATML)


@pytest.fixture
def no_price_is_asked(monkeypatch):
    monkeypatch.delattr("pipeline.new.price.affordable")


def made(pion, data, *options):
    """Return the job that `pion new` writes for data in this folder, and what it prints."""
    for before in Path.cwd().glob("*.yaml"):
        before.unlink()
    code, printed, errors = pion("new", data.name, *options)
    assert code == 0, errors
    (written,) = Path.cwd().glob("*.yaml")
    return read_job(written), printed


def decided(path, limit=None, use=None, roles=(), **columns):
    """Return the data sets of files, if a person says this and nothing else."""
    options = NewOptions(path, Path("data.yaml"), use=use, columns=columns, roles=dict(roles))
    return decide([sample_of(group, limit) for group in find_data(path)[0]], options)


def files_here():
    return sorted(path for path in Path.cwd().rglob("*") if path.is_file())


def refused(pion, data, *options):
    """Return why `pion new` refuses data; nothing was written."""
    before = files_here()
    code, _, errors = pion("new", data.name, *options)
    assert code == 2
    assert files_here() == before
    return errors
