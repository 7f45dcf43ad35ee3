"""One task of lm-eval on an exported model of Pion's own, offline, in this process."""

import functools
import json
import sys

import pytest
import torch

from pion.data.chat.conversation import chat_template
from pion.errors import BadInput
from pion.evaluation.item_scores import unpack
from pion.formats.export import export_model
from pipeline.stages.lm_eval import TaskRequest
from pipeline.stages.lm_eval_results import drawn
from pipeline.state.run_state import BY_ITEM
from tests.support.lm_eval_tasks import QUESTIONS, own_model, write_tasks

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from pipeline.stages.lm_eval_driver import form_of, main, run

WRITES, CHOICES, TEXTS = "generate_until", "multiple_choice", "loglikelihood_rolling"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with made-up tasks, a fine-tuned model, and its tokenizer.json."""
    folder = tmp_path_factory.mktemp("world")
    write_tasks(folder)
    model, tokenizer = own_model()
    tokenizer.save(folder / "tokenizer.json")
    export_model(model, folder / "tokenizer.json", folder / "model")
    return folder


@pytest.fixture(autouse=True)
def offline(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world / "cache")


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Don't read lm-eval's 14,000 files, which a group of tasks may name."""
    manager = "pipeline.stages.lm_eval_driver.TaskManager"
    monkeypatch.setattr(manager, functools.partial(TaskManager, include_defaults=False))


def asking(world, task, **changes):
    given = {
        "task": task,
        "model": str(world / "model"),
        "trusted": False,
        "tokenizer": str(world / "tokenizer.json"),
        "include_path": str(world / "tasks"),
        "limit": None,
        "device": "cpu",
        "chat": "auto",
        "tuned": True,
        "out": str(world),
    }
    return TaskRequest(**given | changes)


def asked(world, task, **changes):
    """Return how lm-eval asked a task."""
    return run(asking(world, task, **changes))["asked"]


# ---------------------------------------------------------------- the form


def test_what_the_model_is_sent_is_a_chat_whose_examples_are_turns(world, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until",
        lambda self, requests, *_: [sent.append(r.args[0]) or "7" for r in requests],
    )
    run(asking(world, "local_described", limit=2))
    parts = sent[0].split("<|user|>\n")
    assert parts[0] == "<|system|>\nAdd the numbers.\n"
    assert [part.count("<|assistant|>\n") for part in parts[1:]] == [1, 1, 1]
    assert sent[0].endswith(" + 1 =\n<|assistant|>\n")


def test_the_begin_of_an_answer_can_be_given_in_a_chat(world):
    assert asked(world, "local_begun", limit=2)["form"] == "chat"


@pytest.mark.parametrize(
    ("chat", "tuned", "kind", "form"),
    [
        ("auto", True, WRITES, "chat"),
        ("auto", True, CHOICES, "text"),
        ("auto", True, TEXTS, "text"),
        ("auto", False, WRITES, "text"),
        (True, True, CHOICES, "chat"),
        (True, False, WRITES, "chat"),
        (False, True, WRITES, "text"),
    ],
)
def test_the_form_follows_the_job_the_model_and_the_kind_of_task(chat, tuned, kind, form):
    assert form_of("a", {"a": kind}, chat, tuned) == form


def test_a_task_that_scores_whole_texts_can_not_be_a_chat(world):
    with pytest.raises(BadInput, match="local_texts can't be asked as a chat: it scores whole"):
        run(asking(world, "local_texts", chat=True))
    assert asked(world, "local_texts")["form"] == "text"


NOT_LOADED = {"model": "nowhere"}


@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("local_both", NOT_LOADED, "local_answers writes .* local_choices scores"),
        ("local_answers", NOT_LOADED | {"chat": True, "tuned": False}, "has no chat template"),
        ("local_answer", {}, "no task 'local_answer'; did you mean 'local_answers'"),
        ("local_list", {}, "no score for local_list as a whole.*local_choices, "),
    ],
)
def test_a_task_that_can_have_no_score_is_refused(world, task, changes, words):
    with pytest.raises(BadInput, match=words):
        run(asking(world, task, **changes))


def test_a_model_that_learned_another_template_gets_no_score(world, tmp_path):
    model, tokenizer = own_model()
    export_model(model, world / "tokenizer.json", tmp_path / "model")
    other = chat_template(tokenizer).replace("<|user|>", "<|human|>").replace('"<|', '"<| ')
    (tmp_path / "model" / "chat_template.jinja").write_text(other)
    (tmp_path / "answers").mkdir()
    changed = asking(
        world, "local_answers", model=str(tmp_path / "model"), out=str(tmp_path / "answers")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["driver", changed.to_json()])
        patch.setattr(sys, "path", [*sys.path])
        main()
    answer = json.loads((tmp_path / "answers" / "answer.json").read_text())
    assert answer[BY_ITEM] == {}
    assert answer["skipped"].startswith("lm-eval would ask the model in another form")


# ---------------------------------------------------------------- which questions


@pytest.mark.slow
def test_a_limit_draws_some_questions_and_every_metric_has_their_scores(world):
    first, every = (run(asking(world, "local_choices", limit=limit)) for limit in (5, 10**6))
    items, all_items = (answer[BY_ITEM]["lm_eval.local_choices acc"] for answer in (first, every))
    places = drawn(QUESTIONS, 5)
    assert places not in (None, [0, 1, 2, 3, 4])
    scores, all_scores = (unpack(one).scores for one in (items, all_items))
    assert scores.tolist() == all_scores[places].tolist()
    assert items["key"]["rule"] != all_items["key"]["rule"]
    assert items["key"]["questions"] != all_items["key"]["questions"]
    assert first["acc"] == scores.mean()
    kept = first["asked"]
    assert (kept["questions"], kept["of"], kept["sample_seed"]) == (5, QUESTIONS, 1234)
    assert "sample_seed" not in every["asked"]
    assert every["asked"]["questions"] == QUESTIONS


@pytest.mark.usefixtures("own_tasks_only")
def test_a_group_has_one_score_and_the_scores_of_each_of_its_tasks(world):
    answer = run(asking(world, "local_twice", limit=3))
    assert set(answer[BY_ITEM]) == {"lm_eval.local_choices acc", "lm_eval.local_more acc"}
    assert answer["asked"]["questions"] == 6
    assert 0 <= answer["acc"] <= 1


# ---------------------------------------------------------------- what else is kept


@pytest.mark.slow
def test_a_tuned_model_writes_answers_in_a_chat_and_how_it_was_asked_is_kept(world):
    kept = asked(world, "local_answers", limit=4)
    assert (kept["form"], kept["shots"]) == ("chat", 2)
    assert kept["version"] == "1"
    assert kept["lm_eval"].startswith("0.4.")
    assert kept["fewshot_seed"] == 1234
    assert kept["until"] == ["Question:", "</s>"]
    assert kept["cropped"] == 0.0
    # The length is the task's. That of the export would be longer.
    assert "128" in (world / "model" / "generation_config.json").read_text()
    assert kept["max_gen_toks"] == 6
    # Answers without an end are cut off, and those with a stop are not.
    assert kept["cut_off"] == 1.0
    assert asked(world, "local_lines", limit=4)["cut_off"] == 0.0
    choices = asked(world, "local_choices", limit=4)
    assert choices["form"] == "text"
    assert "until" not in choices


def test_an_answer_that_ends_with_a_stop_id_at_the_last_token_is_not_cut_off(world, monkeypatch):
    (end,) = (json.loads((world / "model" / "generation_config.json").read_text())["eos_token_id"],)
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM._model_generate",
        lambda self, context, *_, **__: torch.cat(
            [context, torch.tensor([[5] * 5 + [last] for last in (end, 5, 5, 5)])], dim=1
        ),
    )
    assert asked(world, "local_answers", limit=4)["cut_off"] == 0.75


@pytest.mark.slow
def test_prompts_that_the_context_crops_are_counted(world, tmp_path):
    model, _ = own_model(seq_len=32)
    export_model(model, world / "tokenizer.json", tmp_path / "short")
    short = str(tmp_path / "short")
    assert asked(world, "local_answers", limit=4, model=short)["cropped"] == 1.0
    assert asked(world, "local_choices", limit=4, model=short)["cropped"] == 0.0
