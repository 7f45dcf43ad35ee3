"""Runs that keep the chat template of the model that they start from."""

import json
import re

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.template_source import find_template
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.base.find import find_base
from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.report.results import Evaluated, result_of
from tests.runs.test_model_from import SFT, write_job
from tests.support.chat_templates import CHATML, MISTRAL, QWEN3
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.instruct_model import write_instruct_model
from tests.support.preference_runs import write_pairs
from tests.support.whole_runs import finish, head_of

ASKED = [{"role": "user", "content": "What did the cat see?"}]
NEVER_SEEN = "the model seems never to have seen <|im_end|>"
TWO_TURNS = [*ASKED, {"role": "assistant", "content": "A bird."}] * 2


@pytest.fixture
def renders_here(monkeypatch):
    """A test starts the process that renders several times; whole runs use the real one."""
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)


def write_untrained_end(folder):
    """Write a model whose embedding has no direction for the end of a turn, and none for the pad,
    of which nothing is learned."""
    write_instruct_model(folder, "smollm2", CHATML)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tensors = load_file(folder / "model.safetensors")
    for token in (tokenizer.special_ids["<|im_end|>"], tokenizer.pad):
        tensors["model.embed_tokens.weight"][token] *= 0.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def talks_of(tokenizer_file):
    return ChatFormat(tokenizer_file, Tokenizer.from_file(tokenizer_file))


@pytest.mark.usefixtures("renders_here")
def test_training_chat_and_the_published_model_use_the_models_own_template(tmp_path):
    write_instruct_model(tmp_path / "base", "qwen", QWEN3)
    told = {"system": "Be brief.", "template_options": {"enable_thinking": False}}
    job = write_job(tmp_path, sft=SFT | told | {"steps": 30, "seq_len": 128, "warmup_steps": 3})
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write(json.dumps({"messages": TWO_TURNS}) + "\n")
    output = finish(job, "publish.to=out", "log.every=15")
    assert "so each answer of 1 conversations is a separate example" in output

    trained = find_model(f"{tmp_path}/runs/tiny")
    assert trained.tokenizer is not None
    formats = [talks_of(trained.tokenizer), talks_of(tmp_path / "out/tokenizer.json")]
    prompts = [talks.prompt_ids(ASKED) for talks in formats]
    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts.append(stock.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"])
    text = stock.decode(prompts[0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert prompts[0] == prompts[1] == prompts[2]
    ends = [talks.end_of_turn for talks in formats]
    assert ends == [formats[0].tokenizer.special_ids["<|im_end|>"]] * 2
    for talks in formats:
        talks.close()

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    published = find_template(tmp_path / "out")
    assert published.endswith(QWEN3)
    settings = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert ends[0] in settings["eos_token_id"]
    card = (tmp_path / "out/README.md").read_text()
    assert (
        "Its chat template is that of the base model, with the system message “Be brief.” and "
        "`enable_thinking: false` unless a caller gives another." in card
    )
    assert "The tokenizer changes a text by NFC first: bits per byte count the bytes of" in card
    results = result_of(Evaluated, head_of(tmp_path), "evaluate", "tiny")
    assert results["sft"]["stop_accuracy"] > 0.5


@pytest.mark.soak
def test_pions_own_template_can_be_asked_for(tmp_path):
    write_instruct_model(tmp_path / "base", "qwen", QWEN3)
    job = write_job(tmp_path, sft=SFT | {"template": "pion"})
    finish(job, "publish.to=out")
    talks = talks_of(tmp_path / "out/tokenizer.json")
    assert talks.own
    assert talks.tokenizer.decode(talks.prompt_ids(ASKED)).startswith("<|user|>\nWhat")
    assert talks.end_of_turn in talks.stop_ids


@pytest.mark.usefixtures("renders_here")
def test_the_check_shows_the_first_conversation_as_the_model_sees_it(tmp_path, capsys):
    write_instruct_model(tmp_path / "base", "smollm2", CHATML)
    job = write_job(tmp_path, sft=SFT | {"system": "Be brief."})
    assert main(["check", str(job)]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "<|im_start|>system Be brief.<|im_end|> <|im_start|>user What did" in shown
    assert re.search(r"<\|im_start\|>assistant ⟦[^⟧]*\.<\|im_end\|>⟧", shown)


@pytest.mark.usefixtures("renders_here")
@pytest.mark.parametrize(
    ("template", "line", "why"),
    [
        (CHATML, {"role": "robot", "content": "Hi"}, "the unknown role 'robot'"),
        (MISTRAL, ASKED[0], "template wants both sides to take turns"),
    ],
)
def test_a_conversation_that_cant_be_used_ends_the_check_with_its_line(
    template, line, why, tmp_path, capsys
):
    kind = "smollm2" if template is CHATML else "llama3"
    write_instruct_model(tmp_path / "base", kind, template)
    job = write_job(tmp_path)
    messages = [ASKED[0], line, {"role": "assistant", "content": "Yes."}]
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    assert main(["check", str(job)]) == 2
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert why in said
    assert "talks.jsonl:301" in said.replace(" ", "")


def test_settings_of_a_template_need_one(tmp_path, capsys):
    write_instruct_model(tmp_path / "base", "smollm2", None)
    job = write_job(tmp_path, sft=SFT | {"system": "Be brief."})
    assert main(["check", str(job)]) == 2
    assert "sft.system: it is for the chat template of a model" in re.sub(
        r"\s+", " ", capsys.readouterr().out
    )


warned_with_lora = pytest.mark.parametrize(
    ("lora", "warned"), [({"rank": 4}, True), pytest.param(None, False, marks=pytest.mark.soak)]
)


@pytest.mark.usefixtures("renders_here")
@warned_with_lora
def test_lora_from_a_model_that_never_saw_the_end_of_a_turn_is_warned_about(
    tmp_path, capsys, lora, warned
):
    write_untrained_end(tmp_path / "base")
    job = write_job(tmp_path, sft=SFT | {"lora": lora})
    assert main(["check", str(job)]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert (NEVER_SEEN in shown) == warned


@pytest.mark.soak
@pytest.mark.usefixtures("renders_here")
@warned_with_lora
def test_lora_of_preferences_is_warned_of_the_same(tmp_path, capsys, lora, warned):
    write_untrained_end(tmp_path / "base")
    write_pairs(tmp_path)
    sources = [{"kind": "jsonl", "path": "pairs.jsonl"}]
    prefer = {"sources": sources, "held_out": 0.2, "global_batch": 4, "lora": lora}
    job = write_job(tmp_path, sft=None, prefer=prefer)
    code, shown = main(["check", str(job)]), capsys.readouterr().out
    assert code == 0, shown
    assert (NEVER_SEEN in re.sub(r"\s+", " ", shown)) == warned


@pytest.mark.soak
def test_an_adapter_keeps_the_template_for_those_who_start_from_it(tmp_path):
    write_untrained_end(tmp_path / "base")
    publish = {"to": "model", "adapter": True}
    output = finish(write_job(tmp_path, sft=SFT | {"lora": {"rank": 4}}, publish=publish))
    assert f"{NEVER_SEEN}, and" in output  # the pad is not learned
    adapter = find_base("model", tmp_path).base
    assert adapter.template == find_base("base", tmp_path).base.template is not None
