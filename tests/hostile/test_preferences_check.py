"""`pion check` on files of preferences as they should not be: one message, or a count.

The files are a few of those of test_preferences.py. Of the checks, only those that read the file
run.
"""

import re
from functools import partial

import pytest
import yaml

from pipeline.rent.check.job import check_data
from tests.hostile.in_process import ended
from tests.hostile.test_preferences import (
    BAD_LINES,
    GOOD,
    LINE,
    USED,
    line,
    odd,
    write_with,
)
from tests.support.chat_templates import CHATML
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.preference_files import pair_of
from tests.support.stock_models import saved, stock_model
from tests.support.tokenizer_kinds import write_files
from tests.support.waiting import LONG_SECONDS

# `checked(**fields)`: the exit code of `pion check` on the file in the folder, with these fields of
# `prefer`, and what it printed in one line.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of SmolLM2's shape, with a chat template."""
    folder = tmp_path_factory.mktemp("published") / "model"
    saved(stock_model("SmolLM2", vocab_size=384), folder)
    return write_files("smollm2", folder, CHATML)


@pytest.fixture
def checked(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
    command = "pipeline.rent.check.command"
    monkeypatch.setattr(
        f"{command}.checks_of", lambda job, *_, **__: [("data", partial(check_data, job))]
    )
    for limit in ("SECONDS", "CONVERSATION_SECONDS"):  # a busy machine may need longer
        monkeypatch.setattr(f"{command}.{limit}", LONG_SECONDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100000")

    def run(**fields):
        prefer = {"global_batch": 1, "held_out": 0.2, "seq_len": 1024, **fields}
        prefer["sources"] = [{"kind": "jsonl", "path": "prefs.jsonl"}]
        job = {
            "name": "odd",
            "store": str(tmp_path / "runs"),
            "model": {"from": str(model), "seq_len": 512},
            "prefer": prefer,
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        code, printed = ended(capsys, "check", "job.yaml")
        assert re.sub(r"[\n\t]", "", printed).isprintable(), "a terminal would obey it"
        return code, " ".join(printed.split())

    return run


@pytest.mark.parametrize("name", [*BAD_LINES][::6])
def test_check_names_the_line_that_is_no_pair_or_has_no_label(name, tmp_path, checked):
    odd_line, good = BAD_LINES[name]
    write_with(tmp_path, odd_line, good)
    code, printed = checked(loss="dpo" if good is pair_of else "apo-zero")
    assert code == 2
    assert f"prefs.jsonl:{LINE}" in printed
    assert len(printed) < 3000


@pytest.mark.parametrize("name", ["half a character", "a terminal escape", "right to left"])
def test_check_shows_an_odd_pair_as_the_first(name, tmp_path, checked):
    """What is printed has no control character, whatever the pair has."""
    lines = [odd(**USED[name]), *(line(pair_of(number)) for number in range(GOOD))]
    (tmp_path / "prefs.jsonl").write_bytes(b"\n".join(lines))
    code, printed = checked()
    assert code == 0
    assert printed.count("rejected: ") == 1
