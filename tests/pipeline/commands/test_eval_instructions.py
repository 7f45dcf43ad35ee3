"""`pion eval MODEL --instructions`: from the command line to the score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pion.evaluation.instructions.prompts import KINDS, instructions
from pion.evaluation.instructions.score import Answer, score
from pipeline.report.instructions import instructions_in_words, kinds_in_words
from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run
from tests.support.instruction_writers import perfect


def test_a_fine_tuned_model_is_asked_and_every_answer_is_kept(run_folder: Path, pion: Pion) -> None:
    code, out, err = pion("eval", f"{run_folder}/demo", "--instructions", "24", "--json")
    assert code == 0
    found = json.loads(out)["instructions"]
    assert [item["prompt"] for item in found["items"]] == [one.prompt for one in instructions(24)]
    assert found["met"]["prompts"] == 24
    assert found["at_chance"] is True  # its weights are random
    assert "instructions: 12 of 24 answered, " in err
    assert "instructions: 24 of 24 answered, " in err
    assert "is not in the model's vocabulary" not in err


def test_instructions_and_files_are_measured_together(run_folder: Path, pion: Pion) -> None:
    text = run_folder.parent / "text.txt"
    text.write_text("Return a new header with string. " * 20)
    model = f"{run_folder}/demo"
    code, out, _ = pion("eval", model, str(text), "--instructions", "24")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("instructions: no more than by accident: at chance, no claim. met ")
    assert [line[2:].split("  ")[0] for line in lines[1:13]] == list(KINDS)
    assert lines[13].startswith(f"{text}: bits per byte ")
    # The projections that are joined to generate change no other result.
    assert lines[13:] == pion("eval", model, str(text))[1].splitlines()


def test_without_a_number_a_cpu_answers_five_of_each_kind(
    run_folder: Path, pion: Pion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("pion.evaluation.instructions.measure.MOST_TOKENS", 64)
    code, out, _ = pion("eval", f"{run_folder}/demo", "--instructions")
    assert code == 0
    assert "(60 prompts, " in out.splitlines()[0]
    assert "unfinished after 64 tokens)" in out.splitlines()[0]


def test_a_base_model_is_not_asked_and_the_message_says_what_to_do(
    run_folder: Path, pion: Pion
) -> None:
    code, out, err = pion("eval", f"{run_folder}/demo@pretrain", "--instructions", "24")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "is a base model: it was not fine-tuned on conversations" in err
    assert "Nothing was measured. Name a fine-tuned model, such as RUN@sft, or train one" in err


def test_a_context_that_is_too_short_is_refused(here: Path, pion: Pion) -> None:
    make_run(here / "runs", seq_len=64)
    code, out, err = pion("eval", "demo", "--instructions", "24")
    assert (code, out) == (2, "")
    assert "context of 64 tokens is too short for instructions" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("demo", "--instructions", "25"),
            "it must be a multiple of 12 (the kinds) from 24 to 240",
        ),
        (("demo", "--instructions", "0"), "the number of instructions is 0; it must be"),
        (("demo", "--instructions", "252"), "from 24 to 240"),
        (("demo", "--instructions", "text.txt"), "'text.txt' is no number of prompts"),
        (("--instructions", "demo"), "Write MODEL and FILE before --instructions"),
    ],
)
def test_a_wrong_number_of_prompts_is_refused(
    pion: Pion, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = pion("eval", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_command_that_names_nothing_to_measure_is_refused(pion: Pion) -> None:
    code, _, err = pion("eval", "demo")
    assert code == 2
    assert "nothing to measure was named. Name a FILE, or add --instructions" in err


def test_a_file_with_the_name_of_the_result_is_refused(here: Path, pion: Pion) -> None:
    Path("instructions").write_text("Return a new header.")
    code, out, err = pion("eval", "demo", "./instructions", "--instructions", "24")
    assert (code, out) == (2, "")
    assert "rename the file instructions" in err


def test_a_score_above_the_accident_is_claimed_with_its_errors() -> None:
    asked = instructions(24)
    found = score(asked, [Answer(perfect(one.prompt), True) for one in asked], 256)
    scored = dataclasses.asdict(found)
    head, kinds = instructions_in_words(scored), kinds_in_words(scored)
    assert head.startswith("met 100.0% ± 2.0%, by accident ")
    assert head.endswith("(24 prompts, 0.0% of the answers unfinished after 256 tokens)")
    assert len(kinds) == 12
    assert kinds[-1].startswith("  repeat a text         met 100.0% ± 16.7%, by accident 0.0% ± ")
