"""The model card says what the model is, in Markdown the Hub can read."""

import copy
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.job import Job
from pipeline.report.model_card import model_card

JOB: dict[str, Any] = {
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
RESULTS: dict[str, Any] = {
    "sft": {
        "loss": 3.11,
        "loss_sem": 0.021,
        "perplexity": 22.4,
        "bits_per_byte": 2.143,
        "bits_per_byte_sem": 0.014,
        "response_loss": 1.61,
        "response_loss_sem": 0.03,
        "stop_accuracy": 0.93,
        "stop_accuracy_sem": 0.012,
    },
    "pretrain": {
        "loss": 3.02,
        "loss_sem": 0.02,
        "perplexity": 20.5,
        "bits_per_byte": 2.081,
        "bits_per_byte_sem": 0.013,
        "continuations": {
            "accuracy": 0.635,
            "accuracy_sem": 0.034,
            "chance": 0.25,
            "questions": 200,
        },
    },
    "untrained": {"loss": 7.65, "perplexity": 2100.0, "bits_per_byte": 5.31},
    "ngram": {"order": 4, "loss": 3.05, "perplexity": 21.1, "bits_per_byte": 2.1},
    "lm_eval": {
        "local_mc": {"acc,none": 0.41, "acc_stderr,none": 0.05},
        "hellaswag": {"skipped": "its data can't be had: no network"},
    },
}
LINEAGE = [
    {"epoch": 1, "device": "NVIDIA A40", "workers": 2, "seconds": 3600.0},
    {"epoch": 2, "device": "NVIDIA H200", "workers": 1, "seconds": 1800.0},
    {"epoch": 3, "device": "NVIDIA A40", "workers": 2, "seconds": 3600.0},
]


def card_of(
    *, without: tuple[str, ...] = (), results: dict | None = None, lineage: list | None = None
) -> str:
    fields = {key: value for key, value in copy.deepcopy(JOB).items() if key not in without}
    job = Job.model_validate(fields)
    return model_card(
        job=job,
        config=job.model_config_resolved(),
        num_params=5_123_456,
        vocab_size=2048,
        results=RESULTS if results is None else results,
        lineage=LINEAGE if lineage is None else lineage,
    )


def test_the_hub_reads_its_metadata() -> None:
    data = ModelCard(card_of()).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert "conversational" in data.tags
    assert data.datasets == ["roneneldan/TinyStories", "teknium/OpenHermes-2.5"]


def test_results_stand_beside_the_baselines_with_their_standard_errors() -> None:
    lines = card_of().splitlines()
    at = lines.index("| fine-tuned | 3.110 ± 0.021 | 22.4 | 2.143 ± 0.014 |")
    assert lines[at + 1 : at + 4] == [
        "| base | 3.020 ± 0.020 | 20.5 | 2.081 ± 0.013 |",
        "| 4-gram | 3.050 | 21.1 | 2.100 |",
        "| untrained | 7.650 | 2,100.0 | 5.310 |",
    ]
    assert "| true continuation | base | 63.5 % ± 3.4 | 25.0 % | 200 |" in lines
    assert "| local_mc | acc | 0.410 ± 0.050 |" in lines
    assert "| hellaswag | skipped | its data can't be had: no network |" in lines


def test_it_tells_what_the_model_was_trained_on_and_for_how_long() -> None:
    card = card_of()
    assert (
        "[teknium/OpenHermes-2.5](https://huggingface.co/datasets/teknium/OpenHermes-2.5)" in card
    )
    assert "| pretraining | 480 | 8 × 256 | 983K |" in card
    assert "2 × NVIDIA A40, 2 h 00 min; NVIDIA H200, 30 min 00 s" in card


def test_it_says_what_the_run_cost_only_where_the_job_wants_that() -> None:
    job = Job.model_validate(JOB)
    assert job.publish is not None
    assert job.publish.cost is False
    fields: dict[str, Any] = {"job": job, "config": job.model_config_resolved(), "num_params": 1}
    fields |= {"vocab_size": 1, "results": {}, "lineage": []}
    with_cost = model_card(**fields, cost="3 h 10 min, $1.23 (90 % useful; boot 10 %)")
    assert "from boot to publishing: 3 h 10 min, $1.23 (90 % useful; boot 10 %)." in with_cost
    assert "$" not in model_card(**fields)


def test_a_local_path_is_named_without_its_folders() -> None:
    card = card_of()
    assert "`notes.txt`" in card
    assert "someone" not in card


def test_it_shows_how_to_use_the_model() -> None:
    card = card_of()
    assert 'from_pretrained("tester/demo")' in card
    assert "apply_chat_template" in card
    assert "`pion chat hf://tester/demo`" in card


def test_a_base_model_is_prompted_with_plain_text() -> None:
    card = card_of(without=("sft",), results={"pretrain": RESULTS["pretrain"]})
    assert "apply_chat_template" not in card
    assert "`pion generate hf://tester/demo`" in card
    assert "conversational" not in ModelCard(card).data.tags


@pytest.mark.parametrize("target", ["tester/demo", "models/demo"])
def test_the_code_it_shows_is_python(target: str) -> None:
    code = card_of().split("```python\n")[1].split("```")[0]
    compile(code, target, "exec")


def test_what_was_not_measured_is_left_out() -> None:
    card = card_of(results={}, lineage=[])
    assert "## Results" not in card
    assert "Trained on" not in card
    assert "None" not in card
    assert "nan" not in card.lower()


def test_a_value_that_is_not_finite_is_shown_as_missing() -> None:
    broken = {"pretrain": {"loss": float("nan"), "perplexity": float("inf"), "bits_per_byte": 2.0}}
    assert "| base | – | – | 2.000 |" in card_of(results=broken)


def test_the_same_model_has_the_same_card() -> None:
    assert card_of() == card_of()
