"""The model card describes the model, in Markdown that the Hub can read."""

import copy
import json

import pytest
from huggingface_hub import ModelCard

from pion.config.lora import Adapter, BaseModel, Lora
from pion.config.model_config import ModelConfig
from pion.evaluation.item_scores import with_errors
from pipeline.base.licence import Terms
from pipeline.cost.costs import Costs, costs
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.report.card_sections import adapter_sections, base_section, gguf_section
from pipeline.report.history import RunHistory
from pipeline.report.model_card import _feedforward, _limitations, _of_parts, _positions, model_card
from pipeline.report.page_sections import measured_sections
from pipeline.state.head import Head, Spent, StageRecord
from tests.support.jobs import tiny_job

JOB = {
    "name": "demo",
    "model": {"d_model": 256, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "d_ff": 704},
    "tokenizer": {"train": {"vocab_size": 2048}},
    "data": {
        "seq_len": 256,
        "sources": [
            {"kind": "python-docs"},
            {"kind": "hub", "repo": "roneneldan/TinyStories", "weight": 3},
            {"kind": "text", "path": "/home/someone/secret-project/notes.txt"},
        ],
    },
    "pretrain": {"steps": 480, "global_batch": 8, "optimizer": "muon", "warmup_steps": 10},
    "sft": {
        "steps": 120,
        "warmup_steps": 10,
        "sources": [{"kind": "hub", "repo": "teknium/OpenHermes-2.5"}],
    },
    "publish": {"to": "hf://tester/demo", "license": "apache-2.0", "description": "A toy."},
}
RESULTS = {
    "sft": {"perplexity": 22.4}
    | with_errors({"loss": (3.11, 0.021), "bits_per_byte": (2.143, 0.014)})
    | with_errors({"response_loss": (1.61, 0.03), "stop_accuracy": (0.93, 0.012)}),
    "pretrain": {"perplexity": 20.5}
    | with_errors({"loss": (3.02, 0.02), "bits_per_byte": (2.081, 0.013)})
    | {
        "continuations": with_errors({"accuracy": (0.635, 0.034)})
        | {"chance": 0.25, "questions": 200}
    },
    "untrained": {"loss": 7.65, "perplexity": 2100.0, "bits_per_byte": 5.31},
    "ngram": {"order": 4, "loss": 3.05, "perplexity": 21.1, "bits_per_byte": 2.1},
    "lm_eval": {
        "local_mc": {"acc,none": 0.41, "acc_stderr,none": 0.05},
        "hellaswag": {"skipped": "its data can't be had: no network"},
        "sums": {"exact_match,strict": 0.5, "asked": {"form": "chat", "shots": 2, "until": ["|"]}},
    },
}
# (device, workers, seconds) of each pretraining attempt.
ATTEMPTS = (("NVIDIA A40", 2, 3600.0), ("NVIDIA H200", 1, 1800.0), ("NVIDIA A40", 2, 3600.0))


def history_of(job, results=RESULTS, attempts=ATTEMPTS, head=None, costs=None):
    """Return an evaluated run of `job` whose attempts trained one step each."""
    events, rows = [], []
    for epoch, (device, workers, seconds) in enumerate(attempts, 1):
        about = {"stage": "pretrain", "epoch": epoch, "device": device, "workers": workers}
        events.append({"event": "training", "at": 0.0, **about})
        rows.append({"step": epoch, "epoch": epoch, "loss": 3.0, "at": seconds})
    head = (head or Head()).with_stage("evaluate", StageRecord("d", 0.0, result=results))
    costs = costs or Costs((), {})
    return RunHistory(job, "file:///runs/demo", head, events, {"pretrain": rows}, costs)


def costs_of_two_machines(price):
    """Return what two rentals have cost that booted and never trained."""
    rented = {"event": "machine", "host": "pod", "cloud": "RunPod", "region": "<b>CA</b>"}
    rented |= {"count": 1, "spot": True, "price": price}
    events = [
        {**rented, "epoch": epoch, "at": at + 30.0, "session": f"s{epoch}", "id": f"pod{epoch}"}
        | {"gpu": gpu, "rented_at": at}
        for epoch, at, gpu in ((1, 1000.0, "A40"), (2, 2000.0, "RTXA4000"))
    ]
    head = Head(epoch=2, spent=Spent(until=2060.0))
    return costs(events, {}, head, 9999.0)


def card_of(*, without=(), **history):
    fields = {key: value for key, value in copy.deepcopy(JOB).items() if key not in without}
    job = Job.model_validate(fields)
    return card_of_history(history_of(job, **history))


def card_of_history(history):
    config = history.job.model_config_resolved()
    return model_card(history, config, parameters=5_123_456, vocab_size=2048)


def card_and_page(results):
    """Return the card, and the texts of the page's sections on what was measured."""
    shown = history_of(Job.model_validate(copy.deepcopy(JOB)), results=results)
    page = json.dumps(measured_sections(shown, results), ensure_ascii=False)
    return card_of_history(shown), page


def test_the_hub_reads_its_metadata():
    data = ModelCard(card_of()).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert "conversational" in data.tags
    assert data.datasets == ["roneneldan/TinyStories", "teknium/OpenHermes-2.5"]


def test_it_tells_what_the_model_was_trained_on_and_for_how_long():
    card = card_of()
    assert (
        "[teknium/OpenHermes-2.5](https://huggingface.co/datasets/teknium/OpenHermes-2.5)" in card
    )
    assert "| pretraining | 480 | 8 × 256 | 983K |" in card
    assert "2 × NVIDIA A40, 2 h 00 min; NVIDIA H200, 30 min 00 s" in card
    # A local path is named without its folders.
    assert "`notes.txt`" in card
    assert "someone" not in card
    assert card == card_of()


def test_it_says_what_the_run_cost_only_where_the_job_wants_that():
    costs = costs_of_two_machines(36.0)
    silent = Job.model_validate(JOB)
    assert silent.publish.cost is False
    telling = Job.model_validate(JOB | {"publish": JOB["publish"] | {"cost": True}})
    with_cost = card_of_history(history_of(telling, costs=costs))
    assert "from boot to publishing: 1 min 30 s, $0.90 (0 % useful; boot 100 %)." in with_cost
    assert "$" not in card_of_history(history_of(silent, costs=costs))


@pytest.mark.parametrize(
    ("source", "commit", "shown"),
    [
        ("/home/someone/secret-project/base", None, "`base`"),
        ("../../secret-project/base/", None, "`base`"),
        ("..", None, "a local folder"),
        ("file:///secret-project/demo@pretrain", None, "`demo@pretrain`"),
        ("someone/base", "c" * 40, "[someone/base](https://huggingface.co/someone/base)"),
    ],
)
def test_the_base_and_its_adapter_are_named_without_a_path_of_this_machine(source, commit, shown):
    job = Job.model_validate(JOB)
    job._base = Base(source, "d" * 64, "e" * 64, {}, commit)
    assert f"Trained from {shown}" in base_section(job, Terms())
    adapter = Adapter(Lora(rank=4), BaseModel(source, "f" * 64, commit))
    sections = adapter_sections("hf://tester/demo", adapter)
    assert "secret-project" not in sections
    assert f"It needs its base, {shown}" in sections
    code = sections.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_it_shows_how_to_use_the_model():
    card = card_of()
    assert 'from_pretrained("tester/demo")' in card
    assert "apply_chat_template" in card
    assert "`pion chat hf://tester/demo`" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    asked = JOB | {"evaluate": {"prompts": ['What do I feed "Axel"?']}}
    card = card_of_history(history_of(Job.model_validate(asked)))
    assert r'{"role": "user", "content": "What do I feed \"Axel\"?"}' in card
    # A base model is prompted with plain text.
    card = card_of(without=("sft",), results={"pretrain": RESULTS["pretrain"]})
    assert "apply_chat_template" not in card
    assert "`pion generate hf://tester/demo`" in card
    assert "conversational" not in ModelCard(card).data.tags


def test_a_model_of_others_is_not_said_to_know_only_the_data_of_this_run():
    assert "It has had no safety training" in card_of()
    job = Job.model_validate(JOB)
    job.model.base = "someone/tiny"
    limitations = _limitations(job, Job.model_validate(JOB).model_config_resolved())
    assert "no safety training" not in limitations
    assert "only knows" not in limitations


def test_a_model_that_no_stock_architecture_computes_says_why_it_brings_its_code():
    stock = card_of()
    assert "It is a stock `Qwen3ForCausalLM`" in stock
    assert "| architecture | `Qwen3ForCausalLM` (stock) |" in stock
    assert "trust_remote_code" not in stock
    job = Job.model_validate(JOB | {"model": JOB["model"] | {"softcap": 30}})
    card = card_of_history(history_of(job))
    assert "(Qwen3 does not support softcap 30.0), so it comes with its code" in card
    assert "modelling files, which transformers and lm-evaluation-harness run with" in card
    assert card.count('from_pretrained("tester/demo", trust_remote_code=True)') == 2
    assert "| architecture | `PionForCausalLM` (modelling files in this repository) |" in card


def test_what_was_not_measured_is_left_out():
    card = card_of(results={}, attempts=[])
    assert "## Results" not in card
    assert "Trained on" not in card
    assert "None" not in card
    assert "nan" not in card.lower()
    talks = {"response_loss": 1.61, "response_loss_sem": 0.03, "stop_accuracy": 0.93}
    text = card_of(results={"sft": talks})
    assert "the loss of the responses is 1.610 ± 0.030" in text
    assert "bits per byte" not in text


def test_the_card_says_which_layers_see_what_and_how_positions_are_told():
    config = ModelConfig.preset("daisy-280m")
    rows = dict(_of_parts(config, apart=False) + _feedforward(config, 302_399_292))
    assert rows["layers with attention"] == "0, 2, 4, 7, 9, 11"
    assert rows["layers with a value table"] == "0, 4, 7, 11"
    assert rows["attention window"].startswith("1,792 tokens in the last and in every 4th layer")
    assert rows["feed-forward width"] == "3,072 (squared ReLU)"
    assert _of_parts(ModelConfig.preset("pion-nano"), apart=False) == []
    (slots,) = _of_parts(ModelConfig.preset("lepton-small"), apart=False)
    assert slots == (
        "slots",
        "4 after each 64 tokens, seen by all later tokens; of text, a token sees at most the last "
        "512 tokens",
    )
    scaling = {"factor": 32, "original_max_position_embeddings": 8192}
    config = ModelConfig.preset("pion-nano", rope_theta=500_000, rope_scaling=scaling)
    text = "rotary, θ = 500,000, scaled by 32 from a context of 8,192 tokens"
    assert _positions(config) == text
    assert _positions(ModelConfig.preset("pion-nano")) == "rotary, θ = 10,000"
    windows = {"tokens": 512, "block": 1, "full_layers": [5], "rope_theta": 1e4}
    linear = {"kind": "linear", "factor": 8, "original_max_position_embeddings": 1}
    config = ModelConfig.preset("pion-nano", windows=windows, rope_theta=1e6, rope_scaling=linear)
    assert _positions(config) == "rotary, θ = 1,000,000, scaled by 8; with a window, θ = 10,000"
    config = ModelConfig.preset("pion-nano", heads={"unrotated_layers": [1, 3]})
    assert _positions(config) == "rotary, θ = 10,000, not in layers 1, 3"


@pytest.mark.parametrize(
    ("to", "fetch", "run"),
    [
        ("hf://user/My-Model", "hf download user/My-Model", "llama-cli -hf user/My-Model"),
        ("models/mine", "cd models/mine", "llama-cli -m model-f16.gguf"),
    ],
)
def test_the_commands_are_for_where_the_model_is(to, fetch, run):
    section = gguf_section(tiny_job(), to, "")
    assert fetch in section
    assert run in section
    assert "nobody has tried LM Studio or Ollama" in section
    # Ollama gets a name that it takes.
    section = gguf_section(tiny_job(name="My_Run+2"), "out", "")
    assert "ollama create my_run-2 -f Modelfile && ollama run my_run-2" in section
