"""Rows of `pion check`, as rows.yaml has them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.state.stores import FileStore
from tests.pipeline.rent.check.conftest import WORKDIR
from tests.support.light_run import light_run
from tests.support.s3_server import SECRET_KEY
from tests.support.sky_catalog import Price

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())


def name_of(expected):
    return f"{expected['row']}: {(expected['says'] or ['fine'])[0]}"


def write_files(folder, monkeypatch, expected):
    """Make the surroundings of a row: files, and variables."""
    for file, content in expected.get("files", {}).items():
        (folder / file).parent.mkdir(exist_ok=True)
        if file.endswith(".npy"):
            np.save(folder / file, np.zeros(content, np.uint16))
        else:
            (folder / file).write_text(content + "\n")
    if "begun" in expected:
        light_run(FileStore(folder / "runs"), "tiny")
        for path in (folder / "text").iterdir():  # what is prepared needs no source any more
            path.unlink()
    for name, value in expected.get("patch", {}).items():
        monkeypatch.setattr(name, value)
    for variable, value in expected.get("set", {}).items():
        monkeypatch.setenv(variable, value)
    for variable in expected.get("unset", ()):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("expected", [row for row in ROWS if "rental" not in row], ids=name_of)
@pytest.mark.usefixtures("hub", "proxy")
def test_what_is_wrong_with_a_job(case, monkeypatch, expected):
    write_files(case.folder, monkeypatch, expected)
    require(case.row(expected["row"], expected.get("nth", 0), **expected.get("job", {})), expected)


@pytest.mark.parametrize("expected", [row for row in ROWS if "rental" in row], ids=name_of)
def test_what_would_fail_on_a_rental(on_runpod, with_bucket, case, sky_home, monkeypatch, expected):
    write_files(case.folder, monkeypatch, expected)
    text = WORKDIR
    for before, after in expected.get("replace", {}).items():
        assert before in text
        text = text.replace(before, after)
    if prices := expected.get("sells", {}):
        sky_home.sell({gpu: Price(*price) for gpu, price in prices.items()})
    elif prices is None:
        sky_home.lose_catalog()
    resources = (expected["rental"] or {"accelerators": "A40"}).items()
    row = (on_runpod if "store" in expected else with_bucket)(
        expected["row"],
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in resources),
        text=text,
        force="force" in expected,
        check=expected.get("check"),
        **expected.get("job", {}),
    )
    require(row, expected)


def require(row, expected):
    if expected["ok"] == "absent":
        assert row is None
        return
    assert row.ok is expected["ok"], row
    assert all(words in row.words for words in expected["says"]), row
    assert not any(secret in row.words for secret in (SECRET_KEY, "never-to-be-seen")), row
