"""Twenty steps of rewards move the weights as TRL's GRPO does, from the answers that we sampled.

What TRL computed is kept in tests/fixtures/trl_rewards.json. To make it again, with TRL:
`python -m tests.pion.train.test_reinforce_trl`.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pion.config.lora import PEFT_TENSORS, Adapter, BaseModel, Lora
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.formats.peft_folder import write_adapter_folder
from pion.model.lora_projections import adapted, additions
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import Judged, Prompts
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.paths import TESTS
from tests.pion.train.conftest import run
from tests.pion.train.test_objective_trl import MODEL, train_by_trl
from tests.support.tiny_config import drawn

FROZEN = TESTS / "fixtures" / "trl_rewards.json"
STEPS, BATCH, LR, ANSWERS, MAX_TOKENS = 20, 4, 1e-4, 4, 8
STOP = 5
NAMES = ("prompt_ids", "completion_ids", "logprobs", "reward")
SCALES = {"none": "none", "std": "group"}
LORA = Lora(rank=4, alpha=8)
CASES = {"none": ("none", None), "std": ("std", None), "lora": ("std", LORA)}
# Of a tensor of weights, so many numbers are kept in the fixture.
KEPT = 16


def prompt(row):
    return [(7 * row + place) % 250 + 6 for place in range(1 + row % 5)]


def reward(row, answer):
    """Return a reward that is equal in all of a group for a row in four, and in others differs."""
    return 0.1 * (sum(answer.ids) % 10) if row % 4 else float(row % 8 == 0)


def first_model(lora):
    model = drawn(MODEL, 0)
    return model if lora is None else adapted(model, lora, seed=1, dtype=torch.float32)


def trained(scale, lora):
    """Return the norms of our gradients, the model after the steps, and what TRL is asked."""
    steps = []

    def rewards(rows, groups):
        judged = [[reward(r, answer) for answer in g] for r, g in zip(rows, groups, strict=True)]
        steps.append(
            [
                dict(zip(NAMES, (prompt(row), answer.ids, answer.log_probs, value), strict=True))
                for row, group, values in zip(rows, groups, judged, strict=True)
                for answer, value in zip(group, values, strict=True)
            ]
        )
        return Judged(torch.tensor(judged, dtype=torch.float64), {})

    how = {"steps": STEPS, "lr": LR, "schedule": "constant", "weight_decay": 0.0}
    learning = Reinforcement(answers=ANSWERS, max_tokens=MAX_TOKENS, scale=scale)
    settings = TrainSettings(global_batch=BATCH, learning=learning, **how)
    # An id in twenty ends an answer. So some answers have one token, and some do not end.
    stops = frozenset(range(STOP, MODEL.vocab_size, 20))
    prompts = Prompts(prompt, rewards, MODEL.seq_len, 5, stops, MODEL.vocab_size)
    model = first_model(lora)
    trainer = Trainer(model, prompts, settings, ComputePlan(micro_batch=3, threads=1))
    norms = [step["grad_norm"] for step in run(trainer, STEPS)]
    trainer.close()
    sizes = {"num_generations": ANSWERS, "max_completion_length": MAX_TOKENS}
    fields = {"learning_rate": LR, "scale_rewards": SCALES[scale]} | sizes
    return norms, model, ["grpo", fields, steps]


def exported(model, lora, folder):
    """Return what is trained, by the names that Hugging Face or peft has for it."""
    if lora is None:
        export_model(model, folder.parent / "tokenizer.json", folder)
        return {name: w.float() for name, w in load_file(folder / "model.safetensors").items()}
    folder.mkdir()
    adapter = Adapter(lora, BaseModel("model", "0" * 64))
    write_adapter_folder(folder, MODEL, adapter, additions(model))
    return load_file(folder / PEFT_TENSORS)


def theirs(folder):
    """Return what TRL finds in each case: the norms of gradients, and some of the weights."""
    asked = [trained(*case)[2] for case in CASES.values()]
    exported(first_model(LORA), LORA, folder / "adapter")
    asked[-1][1]["adapter"] = str(folder / "adapter")
    train_by_trl(folder, asked)
    norms = json.loads((folder / "losses.json").read_text())
    weights = [load_file(folder / f"weights-{n}.safetensors") for n in range(len(CASES))]
    return {
        case: {"norms": of_steps, "weights": {name: few(w) for name, w in after.items()}}
        for case, of_steps, after in zip(CASES, norms, weights, strict=True)
    }


def few(weights):
    return weights.flatten()[:KEPT].tolist()


def distances(norms, weights, expected):
    """Return the largest distances: of norms, relative, and of weights."""
    of_norms = [abs(n / e - 1) if e else n for n, e in zip(norms, expected["norms"], strict=True)]
    of_weights = [
        abs(one - other)
        for name, numbers in expected["weights"].items()
        for one, other in zip(few(weights[name]), numbers, strict=True)
    ]
    return max(of_norms), max(of_weights)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_that_trl_has_computed(case, tmp_path):
    train_bpe(["the quick brown fox " * 9], MODEL.vocab_size).save(tmp_path / "tokenizer.json")
    expected, (norms, model, _) = json.loads(FROZEN.read_text())[case], trained(*CASES[case])
    weights = exported(model, CASES[case][1], tmp_path / "ours")
    of_norms, of_weights = distances(norms, weights, expected)
    print(f"{case}: norms {of_norms:.1e}, weights {of_weights:.1e}")
    assert of_norms < 1e-6
    assert of_weights < 2e-5  # Adam divides by the roots of small squares


@pytest.mark.soak
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: uv sync --group trl brings it",
)
def test_trl_still_computes_the_same(tmp_path):
    expected = json.loads(FROZEN.read_text())
    for case, found in theirs(tmp_path).items():
        weights = {name: torch.tensor(numbers) for name, numbers in found["weights"].items()}
        assert max(distances(found["norms"], weights, expected[case])) < 1e-6


def main():
    with tempfile.TemporaryDirectory() as folder:
        FROZEN.write_text(json.dumps(theirs(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    main()
