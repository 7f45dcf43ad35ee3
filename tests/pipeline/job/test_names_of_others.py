"""Each key of the example files of TRL, axolotl and LLaMA-Factory is known, or has an answer."""

import re
from typing import get_args

from pipeline.job.every_field import find_field
from pipeline.job.names_of_others import NAMES, PATTERNS, in_pion
from tests.paths import TESTS

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
