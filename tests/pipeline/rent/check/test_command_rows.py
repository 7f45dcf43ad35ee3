"""Rows of `pion check`, as rows.yaml has them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.pipeline.rent.check.conftest import WORKDIR

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())


def name_of(expected):
    return f"{expected['row']}: {(expected['says'] or ['fine'])[0]}"


@pytest.mark.parametrize("expected", [row for row in ROWS if "rental" not in row], ids=name_of)
@pytest.mark.usefixtures("hub", "proxy")
def test_what_is_wrong_with_a_job(case, monkeypatch, expected):
    for variable in expected.get("unset", ()):
        monkeypatch.delenv(variable, raising=False)
    for file, content in expected.get("files", {}).items():
        if file.endswith(".npy"):
            np.save(case.folder / file, np.zeros(content, np.uint16))
        else:
            (case.folder / file).write_text(content + "\n")
    require(case.row(expected["row"], **expected.get("job", {})), expected)


@pytest.mark.parametrize("expected", [row for row in ROWS if "rental" in row], ids=name_of)
def test_what_would_fail_on_a_rental(with_bucket, monkeypatch, expected):
    text = WORKDIR
    for before, after in expected.get("replace", {}).items():
        assert before in text
        text = text.replace(before, after)
    for variable in expected.get("unset", ()):
        monkeypatch.delenv(variable)
    resources = json.dumps(expected["rental"] or {"accelerators": "A40"})[1:-1]
    row = with_bucket(expected["row"], resources, text=text, **expected.get("job", {}))
    require(row, expected)


def require(row, expected):
    assert row.ok is expected["ok"], row
    assert all(words in row.words for words in expected["says"]), row
