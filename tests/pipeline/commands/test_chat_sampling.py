"""`pion generate`: prompts from arguments, standard input and files, and the precision."""

import io
import json
from pathlib import Path

import pytest
import torch

from pion.errors import BadInput
from pion.train import hardware
from pipeline.commands import chat
from pipeline.console.formats import printable
from tests.support.finished_run import make_run


def test_generate_continues_a_prompt_and_repeats_itself_with_a_seed(here, pion):
    make_run(here / "runs")
    command = ["generate", "demo", "--prompt", "Return a", "--max-tokens", "8", "--seed", "1"]
    code, first, _ = pion(*command)
    assert code == 0
    assert first.startswith("Return a")
    assert first.endswith("\n")
    assert pion(*command)[1] == first


def test_generate_reads_standard_input_and_refuses_an_empty_prompt(here, pion, monkeypatch):
    make_run(here / "runs")
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    code, _, err = pion("generate", "demo")
    assert code == 2
    assert "the prompt is empty" in err


def test_a_prompt_longer_than_the_context_is_refused(here, pion):
    make_run(here / "runs")
    code, _, err = pion("generate", "demo", "--prompt", "header " * 100)
    assert code == 2
    assert "the model's context is 64" in err


def test_nothing_is_printed_before_an_error(here, pion, monkeypatch):
    def fail(*_, **__):
        raise BadInput("the model failed")
        yield ""

    make_run(here / "runs")
    monkeypatch.setattr(chat, "_pieces", fail)
    assert pion("generate", "demo", "--prompt", "Return")[:2] == (2, "")


def test_several_prompts_give_a_line_of_json_each_in_their_order(here, pion):
    make_run(here / "runs")
    prompts = ["Return a", "def", "header"]
    Path("prompts.txt").write_text("\n".join(prompts[:2]) + "\n\n" + prompts[2] + "\n")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    settings = ["--max-tokens", "8", "--seed", "1", "--dtype", "float32"]
    code, out, _ = pion("generate", "demo", "--prompts", "prompts.txt", *settings)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        _, alone, _ = pion("generate", "demo", "--prompt", line["prompt"], *settings)
        assert alone.rstrip("\n") == printable(line["prompt"] + line["text"]).rstrip("\n")
    assert pion("generate", "demo", "--prompts", "prompts.jsonl", *settings)[1] == out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("no.txt", None, "no.txt: can't read these prompts"),
        ("empty.txt", "\n \n", "empty.txt: the file has no prompt"),
        ("bytes.txt", b"\xff", "bytes.txt: can't read these prompts"),
        ("long.txt", "a\n\n" + "header " * 100, "long.txt:3: this text has"),
        ("list.jsonl", '["Return a"]', 'list.jsonl:1: not a prompt. Write {"prompt": '),
        ("blank.jsonl", '{"prompt": " "}', "blank.jsonl:1: the prompt is empty"),
    ],
)
def test_a_file_that_cannot_be_continued_is_refused_by_file_and_line(here, pion, name, text, words):
    make_run(here / "runs")
    if text is not None:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = pion("generate", "demo", "--prompts", name)
    assert (code, out) == (2, "")
    assert words in err


def test_generate_computes_in_the_precision_that_was_asked_for(here, pion, monkeypatch):
    make_run(here / "runs")
    seen = []

    def answer(model, *_, **__):
        seen.append(model.blocks[0].attention.q_proj.weight.dtype)

    monkeypatch.setattr(chat, "answer_once", answer)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: 2.0)
    for computes_bf16 in (True, False):
        monkeypatch.setattr(hardware, "has_bf16", lambda _, found=computes_bf16: found)
        for choice in ([], ["--dtype", "float32"], ["--dtype", "bfloat16"]):
            assert pion("generate", "demo", "--prompt", "a", *choice)[0] == 0
    fp32, bf16 = torch.float32, torch.bfloat16
    assert seen == [bf16, fp32, bf16, fp32, fp32, bf16]
