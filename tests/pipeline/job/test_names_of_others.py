"""Each key of the example files of TRL, axolotl and LLaMA-Factory is known, or has an answer."""

import re
from typing import get_args

import pytest

from pipeline.job.every_field import find_field
from pipeline.job.names_of_others import NAMES, PATTERNS, in_pion
from tests.paths import TESTS
from tests.pipeline.job.conftest import complaint

# The keys at the top of all example files that the three published in 2026.
KEYS = re.sub(
    "#.*", "", (TESTS / "fixtures" / "keys_of_others.txt").read_text(encoding="utf-8")
).split()
# Where Pion has a key whose values are called otherwise.
HOMES = {
    "optimizer": "sft.optimizer",
    "schedule": "sft.schedule",
    "dtype": "hardware.dtype",
    "loss": "prefer.loss",
    "scale": "reinforce.scale",
    "template": "sft.template",
}


def test_each_key_at_the_top_of_an_example_has_an_answer():
    assert len(KEYS) > 500
    # LLaMA-Factory writes `model: user/name`, and a preset is no such name.
    assert {key for key in KEYS if in_pion(key, None, {}) is None} == {"model"}


def test_each_key_that_an_answer_names_is_a_key_of_a_job():
    for answer in NAMES:
        named = [answer] if " " not in answer else re.findall(r"`(\w+(?:\.\w+)+)[`:]", answer)
        for path in named:
            stages = ("pretrain", "data", "sft", "prefer", "reinforce")
            assert any(find_field(path.replace("STAGE", stage), {}) for stage in stages), path


def test_each_value_that_an_answer_names_is_a_choice_of_its_key():
    for pattern, answer in PATTERNS.items():
        key, equals, _ = pattern.partition("=")
        if equals and key in HOMES and (write := re.match(r"write ([\w-]+)", answer)):
            choices = get_args(find_field(HOMES[key], {}).annotation)
            assert write[1] in choices, pattern


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("learning_rate=1e-4", "in Pion, this key is `pretrain.lr`"),
        ("pretrain.max_length=64", "in Pion, this key is `data.seq_len`"),
        ("lora_r=8", "this key is `sft.lora.rank` or `prefer.lora.rank` or `reinforce.lora.rank`"),
        ("num_epochs=3", "`reinforce.epochs`, and pretrain has only `pretrain.steps`"),
        ("micro_batch_size=2", "this key is `hardware.micro_batch`, which changes no result"),
        ("optim=adamw_8bit", "this key is `pretrain.optimizer`; write adamw8bit"),
        ("pretrain.optimizer=adamw_torch", "unknown value 'adamw_torch'; write adamw (expected"),
        ("pretrain.schedule=linear", "write wsd, with `decay_shape: linear` and `decay_fraction"),
        ("hardware.dtype=bf16", "unknown value 'bf16'; write bfloat16 (expected auto,"),
        ("fp16=true", "Pion computes in bfloat16 or in float32 (`hardware.dtype`), not in float16"),
        ("bf16=false", "write `hardware.dtype: float32`"),
        ("lora_dropout=0.1", "leave the key out. LoRA trains without dropout here"),
        ("dataset={repo: user/talks}", "in Pion, this key is `data.sources`"),
        ("model=Qwen/Qwen3-0.6B", "to start from a trained model, write {from: Qwen/Qwen3-0.6B}"),
    ],
)
def test_a_job_with_the_names_of_others_says_what_to_write(job_file, override, answer):
    message = complaint(job_file(), override)
    assert "has 1 mistake;" in message
    assert answer in message
    assert "did you mean" not in message
