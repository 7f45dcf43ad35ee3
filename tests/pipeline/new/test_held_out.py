"""Of little data, something is held out, as the run's hash decides; or the data is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.read_job import read_job
from pipeline.rent.check.command import run_checks
from tests.pipeline.conftest import Pion
from tests.pipeline.rent.conftest import SkyHome
from tests.support import own_data


@pytest.mark.parametrize("count", [4, 6, 8, 12])
def test_a_few_conversations_pass_check_or_are_refused(
    count: int, here: Path, pion: Pion, sky_home: SkyHome, plain_base: Path
) -> None:
    own_data.sharegpt(here, count)
    code, _, errors = pion("new", "sharegpt.jsonl", "--from", str(plain_base))
    if code:
        assert f"{count} conversations are too little to train on" in errors
        assert not Path("sharegpt.yaml").exists()
    else:
        assert not [row for row in run_checks(read_job("sharegpt.yaml"), None) if row.ok is False]


@pytest.mark.parametrize("size", [300, 1500, 3000, 6000, 20_000])
def test_a_little_text_passes_check_or_is_refused(
    size: int, here: Path, pion: Pion, sky_home: SkyHome
) -> None:
    paragraphs = [own_data.words(30, n) for n in range(200)]
    Path("t.txt").write_text("\n\n".join(paragraphs)[:size])
    code, _, errors = pion("new", "t.txt", "--from", "none")
    if code:
        assert "bytes of text are too little to train on" in errors
        assert not Path("t.yaml").exists()
    else:
        assert not [row for row in run_checks(read_job("t.yaml"), None) if row.ok is False]
    assert (code == 0) or size < 6000


def test_one_document_of_many_lines_is_enough(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    records = [{"text": own_data.words(4000, n)} for n in range(6)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, records)))
    code, _, errors = pion("new", "t.jsonl", "--from", "none")
    assert code == 0, errors
    assert not [row for row in run_checks(read_job("t.yaml"), None) if row.ok is False]
