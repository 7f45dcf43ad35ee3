"""`pion eval --core`: from a bundle on the disk to the numbers and what they mean."""

import json
import math
from pathlib import Path

import pytest
import torch

from pion.formats.export import export_model
from pipeline.commands import eval_core
from tests.support.core_bundle import pinned, write_bundle
from tests.support.finished_run import make_run, tiny_model, tiny_tokenizer


@pytest.fixture
def bundle(here, monkeypatch):
    """The made-up bundle."""
    return pinned(monkeypatch, write_bundle(here / "eval_bundle.zip"))


@pytest.fixture
def run(here):
    """A run that can be asked."""
    make_run(here / "runs", seq_len=256)


def export(folder, model):
    tokenizer = folder.with_suffix(".json")
    tiny_tokenizer().save(tokenizer)
    export_model(model, tokenizer, folder)


@pytest.mark.usefixtures("bundle", "run")
def test_each_task_and_the_mean_are_printed(pion):
    code, out, err = pion("eval", "demo", "--core", "eval_bundle.zip")
    assert (code, err) == (0, "")
    choice, schema, words, mean = out.splitlines()
    assert choice.startswith("made_up_choice: ")
    assert " right (" in choice
    assert "12 of 12 items), centred " in choice
    assert "; choice " in choice
    assert "; 1 odd" in choice
    assert schema.startswith("made_up_schema: ")
    assert "at chance, 0.0%; 12 of 12 items" in words
    assert mean.startswith("eval_bundle.zip: CORE ")
    assert "rule core/nanochat-1, baselines v1; 500 items per task; bundle " in mean
    assert ". With baselines v2: " in mean
    assert "Not CORE" not in mean


def test_a_model_of_elsewhere_is_asked_for_so_many_items_as_json(here, bundle, pion):
    export(here / "exported", tiny_model(tiny_tokenizer().vocab_size, 256, seed=2))
    asked = "eval", "exported", "--core", str(bundle), "--json", "--core-items"
    for items, limit, count in (("5", 5, 5), ("all", None, 12)):
        code, out, _ = pion(*asked, items)
        assert code == 0
        (found,) = json.loads(out).values()
        assert (found["rule"], found["name"], found["limit"]) == ("core/nanochat-1", "CORE", limit)
        assert [task["items"] for task in found["tasks"]] == [count] * 3
        assert "credits" not in found["tasks"][0]


@pytest.mark.usefixtures("run")
def test_files_are_measured_next_to_core(bundle, pion):
    Path("text.txt").write_text("Return a new header. " * 9)
    code, out, _ = pion("eval", "demo", "text.txt", "--core", str(bundle), "--json")
    assert code == 0
    assert list(json.loads(out)) == ["text.txt", str(bundle)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "nothing to measure was named. Name a FILE, or add --core PATH"),
        (("--core-items", "5"), "--core-items and --core-cropped go with --core PATH"),
        (("text.txt", "--core-cropped"), "--core-items and --core-cropped go with --core PATH"),
        (("--core", "none"), "none: can't read this bundle of CORE (No such file"),
        (("--core", "."), ".: expected the published archive of CORE's questions, with the sha256"),
        *(
            (("--core", "eval_bundle.zip", "--core-items", items), "expected a whole number from 1")
            for items in ("0", "-1", "٣", "9" * 5000, "some")
        ),
    ],
    ids=range(10),
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_loaded(
    arguments, expected, bundle, pion
):
    code, out, err = pion("eval", "no-such-model", *arguments)
    assert (code, out) == (2, "")
    assert expected in err


def test_a_short_context_is_refused_unless_allowed(here, bundle, pion):
    make_run(here / "runs", seq_len=64)
    code, out, err = pion("eval", "demo", "--core", str(bundle))
    assert (code, out) == (2, "")
    assert "context has 64 tokens. CORE needs 256 or more" in err
    assert "Use --core-cropped to measure it all the same" in err
    code, out, _ = pion("eval", "demo", "--core", str(bundle), "--core-cropped")
    assert code == 0
    assert "% of rows cropped" in out
    assert "context 64: 2 tasks cropped" in out


def test_a_model_without_numbers_is_not_finite_and_never_wrong(here, bundle, pion):
    model = tiny_model(tiny_tokenizer().vocab_size, 256)
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    export(here / "broken", model)
    code, out, _ = pion("eval", "broken", "--core", str(bundle))
    assert code == 0
    assert "made_up_choice: not finite: the model's logits of 12 items are not numbers" in out
    assert "CORE: not finite (" in out
    (found,) = json.loads(pion("eval", "broken", "--core", str(bundle), "--json")[1]).values()
    assert (found["value"], found["tasks"][0]["accuracy"]) == (None, None)


@pytest.mark.usefixtures("run")
def test_long_work_says_how_far_it_is(bundle, pion, monkeypatch):
    monkeypatch.setattr(eval_core, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("pion.evaluation.core.scoring.ITEMS_AT_ONCE", 5)
    _, _, err = pion("eval", "demo", "--core", str(bundle))
    assert "core: made_up_choice: 5 of 12 items\n" in err
    assert "core: made_up_words: 10 of 12 items\n" in err
