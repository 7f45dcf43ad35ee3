"""`pion eval --core`: from a bundle on the disk to the numbers and what they mean."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from pion.formats.export import export_model
from pipeline.commands import eval_core
from pipeline.report.core import core_in_words
from tests.support.core_bundle import write_bundle, zip_bundle
from tests.support.finished_run import make_run, tiny_model, tiny_tokenizer


@pytest.fixture
def bundle(here):
    """The made-up bundle as an archive, and a run that can be asked."""
    make_run(here / "runs", seq_len=256)
    return zip_bundle(write_bundle(here / "bundle"), here / "eval_bundle.zip")


def export(folder, model):
    tokenizer = folder.with_suffix(".json")
    tiny_tokenizer().save(tokenizer)
    export_model(model, tokenizer, folder)


def test_each_task_and_the_mean_are_printed(bundle, pion):
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
    assert mean.startswith("eval_bundle.zip: mean of 3 tasks ")
    assert "rule core/nanochat-1, baselines v1; 500 items per task; bundle " in mean
    assert ". With baselines v2: " in mean
    assert "Not CORE: 22 of CORE's 22 tasks are missing; 3 tasks are not CORE's" in mean


def test_a_model_and_a_folder_of_elsewhere_give_the_same_as_json(here, bundle, pion):
    export(here / "exported", tiny_model(tiny_tokenizer().vocab_size, 256, seed=2))
    code, out, _ = pion("eval", "exported", "--core", "bundle", "--core-items", "5", "--json")
    assert code == 0
    (found,) = json.loads(out).values()
    assert (found["rule"], found["name"], found["limit"]) == (
        "core/nanochat-1",
        "mean of 3 tasks",
        5,
    )
    assert [task["items"] for task in found["tasks"]] == [5, 5, 5]
    assert "credits" not in found["tasks"][0]
    again = pion("eval", "exported", "--core", str(bundle), "--core-items", "5", "--json")[1]
    (packed,) = json.loads(again).values()
    assert packed == found
    all_items = pion("eval", "exported", "--core", "bundle", "--core-items", "all", "--json")[1]
    (whole,) = json.loads(all_items).values()
    assert (whole["limit"], whole["tasks"][0]["items"]) == (None, 12)


def test_files_are_measured_next_to_core(here, bundle, pion):
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
        (("--core", "bundle", "--core-items", "0"), "--core-items is '0'; expected a whole"),
        (("--core", "bundle", "--core-items", "-1"), "--core-items is '-1'; expected a whole"),
        (("--core", "bundle", "--core-items", "٣"), "expected a whole number from 1 to"),
        (("--core", "bundle", "--core-items", "9" * 5000), "--core-items is '999"),
        (("--core", "bundle", "--core-items", "some"), "--core-items is 'some'; expected"),
    ],
    ids=range(9),
)
def test_options_that_do_not_fit_are_refused_before_the_model_is_loaded(
    arguments, expected, here, pion
):
    write_bundle(here / "bundle")
    code, out, err = pion("eval", "no-such-model", *arguments)
    assert (code, out) == (2, "")
    assert expected in err


def test_a_mistake_in_the_bundle_is_told_before_anything_is_measured(here, bundle, pion):
    (here / "bundle" / "eval_data" / "words" / "words.jsonl").write_text('{"context": 3}\n')
    Path("text.txt").write_text("Return a new header.")
    code, out, err = pion("eval", "demo", "text.txt", "--core", "bundle")
    assert (code, out) == (2, "")
    assert "bundle/eval_data/words/words.jsonl:1: not an item of language_modeling: " in err


def test_a_short_context_is_refused_unless_allowed(here, pion):
    make_run(here / "runs", seq_len=64)
    write_bundle(here / "bundle")
    code, out, err = pion("eval", "demo", "--core", "bundle")
    assert (code, out) == (2, "")
    assert "context has 64 tokens. CORE needs 256 or more" in err
    assert "Use --core-cropped to measure it all the same" in err
    code, out, _ = pion("eval", "demo", "--core", "bundle", "--core-cropped")
    assert code == 0
    assert "% of rows cropped" in out
    assert "context 64: 2 tasks cropped" in out


def test_a_model_without_numbers_is_not_finite_and_never_wrong(here, pion):
    model = tiny_model(tiny_tokenizer().vocab_size, 256)
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    export(here / "broken", model)
    write_bundle(here / "bundle")
    code, out, _ = pion("eval", "broken", "--core", "bundle")
    assert code == 0
    assert "made_up_choice: not finite: the model's logits of 12 items are not numbers" in out
    assert "mean of 3 tasks: not finite (" in out
    found = json.loads(pion("eval", "broken", "--core", "bundle", "--json")[1])["bundle"]
    assert (found["value"], found["tasks"][0]["accuracy"]) == (None, None)


def test_long_work_says_how_far_it_is(here, bundle, pion, monkeypatch):
    monkeypatch.setattr(eval_core, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("pion.evaluation.core.scoring.ITEMS_AT_ONCE", 5)
    _, _, err = pion("eval", "demo", "--core", str(bundle))
    assert "core: made_up_choice: 5 of 12 items\n" in err
    assert "core: made_up_words: 10 of 12 items\n" in err


def test_core_is_called_by_its_rule_and_baselines():
    from tests.pion.evaluation.core.test_measure_results import of_core

    words = core_in_words(dataclasses.asdict(of_core()))
    assert words.startswith("CORE 0.")
    assert "(rule core/nanochat-1, baselines v1; all items; bundle digest). With baselines" in words
    assert "Not CORE" not in words
