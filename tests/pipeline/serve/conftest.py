"""A server with two tiny models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from pipeline.models.find import find_model
from tests.support.finished_run import make_run
from tests.support.served import Served, serving


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run `demo`: a base model, and one fine-tuned on conversations."""
    folder = tmp_path_factory.mktemp("served")
    make_run(folder / "runs", seq_len=256)
    return folder / "runs"


@pytest.fixture(scope="session")
def served(run_folder: Path) -> Iterator[Served]:
    models = {
        "chat": find_model(f"{run_folder}/demo"),
        "base": find_model(f"{run_folder}/demo@pretrain"),
    }
    with serving(models, slots=8, queue=8) as server:
        yield server


@pytest.fixture(scope="session")
def client(served: Served) -> OpenAI:
    return served.client()
