"""Twenty losses of each kind are TRL's to 1e-5, or a plain model's in fp64 where TRL has none.

TRL's losses are kept in tests/fixtures/trl_losses.json, so that every change meets them. To make
them again, with TRL: `python -m tests.pion.train.test_objective_trl`.
"""

import importlib.util
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.formats.export import export_model
from pion.train.preference import Preference
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.paths import TESTS
from tests.pion.train.conftest import run
from tests.support.pair_rows import CONFIG, PairRows, PlainModel, random_pairs
from tests.support.tiny_config import drawn
from tests.support.waiting import run_to_end

FROZEN = TESTS / "fixtures" / "trl_losses.json"
STEPS, BATCH, LR = 20, 4, 1e-3
# As many as the tokenizer that is exported with the model has: an export leaves other rows out, and
# the softmax would be over fewer.
MODEL = replace(CONFIG, vocab_size=264)

# By name: our settings, which trainer of TRL, and its settings.
VARIANTS = {
    "dpo 0.1": ({"loss": "dpo"}, "dpo", {"beta": 0.1}),
    "dpo 0.5": ({"loss": "dpo", "beta": 0.5}, "dpo", {"beta": 0.5}),
    "dpo 0.01": ({"loss": "dpo", "beta": 0.01}, "dpo", {"beta": 0.01}),
    "dpo-norm": ({"loss": "dpo-norm"}, "dpo", {"beta": 5.0, "loss_type": ["sigmoid_norm"]}),
    "dpo-norm 2": (
        {"loss": "dpo-norm", "beta": 2.0},
        "dpo",
        {"beta": 2.0, "loss_type": ["sigmoid_norm"]},
    ),
    "ipo": ({"loss": "ipo"}, "dpo", {"beta": 1.0, "loss_type": ["ipo"]}),
    "ipo 0.5": ({"loss": "ipo", "beta": 0.5}, "dpo", {"beta": 0.5, "loss_type": ["ipo"]}),
    "apo-zero": ({"loss": "apo-zero"}, "dpo", {"beta": 0.1, "loss_type": ["apo_zero"]}),
    "apo-down": ({"loss": "apo-down"}, "dpo", {"beta": 0.1, "loss_type": ["apo_down"]}),
    "dpo and sft": (
        {"loss": "dpo", "sft_weight": 0.2},
        "dpo",
        {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    ),
    "apo-zero single": (
        {"loss": "apo-zero", "unpaired": True},
        "kto",
        {"beta": 0.1, "loss_type": "apo_zero_unpaired"},
    ),
    "apo-zero single, weighted": (
        {"loss": "apo-zero", "unpaired": True, "undesirable_weight": 2.0},
        "kto",
        {"beta": 0.1, "loss_type": "apo_zero_unpaired", "undesirable_weight": 2.0},
    ),
}
# By default, one of each kind of trainer. test_preference_losses.py has the derivatives of all.
BY_DEFAULT = ("dpo-norm 2", "dpo and sft", "apo-zero single, weighted")


def rows_of_pairs():
    """Return two pairs in each row, as TRL's batches have equally many, and their references."""
    reference = PlainModel(drawn(MODEL, 7), LR)
    rows = random_pairs(STEPS * BATCH, each=2)
    with torch.no_grad():
        for row in rows:
            sums = reference.sums(row)
            both = zip(row, sums.a.tolist(), sums.b.tolist(), strict=True)
            row[:] = [pair._replace(reference=(w, other)) for pair, w, other in both]
    return rows


def examples(row, kind):
    """Return the examples of a row, as TRL wants them."""
    if kind == "dpo":
        return [
            {"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected}
            for p in row
        ]
    return [
        {"prompt_ids": p.prompt, "completion_ids": ids, "label": label}
        for p in row
        for ids, label in ((p.chosen, True), (p.rejected, False))
    ]


def trls_losses(folder):
    rows, asked = rows_of_pairs(), []
    for _, kind, fields in VARIANTS.values():
        steps = [rows[step * BATCH : (step + 1) * BATCH] for step in range(STEPS)]
        made = [[one for row in step for one in examples(row, kind)] for step in steps]
        asked.append([kind, {"learning_rate": LR, **fields}, made])
    train_by_trl(folder, asked)
    found = json.loads((folder / "losses.json").read_text())
    return dict(zip(VARIANTS, found, strict=True))


def train_by_trl(folder, asked):
    """Let TRL train what is asked (trl_losses.py), from our weights; it writes into the folder."""
    tokenizer = folder / "tokenizer.json"
    train_bpe(["the quick brown fox " * 9], MODEL.vocab_size).save(tokenizer)
    assert Tokenizer.from_file(tokenizer).vocab_size == MODEL.vocab_size
    for name, seed in (("model", 0), ("reference", 7)):
        export_model(drawn(MODEL, seed), tokenizer, folder / name)
    (folder / "asked.json").write_text(json.dumps(asked))
    run_to_end([sys.executable, "-m", "tests.pion.train.trl_losses", str(folder)], check=True)


def our_losses(fields):
    rows = PairRows(rows_of_pairs(), single="unpaired" in fields)
    steady = {"lr": LR, "schedule": "constant", "weight_decay": 0.0}
    settings = TrainSettings(STEPS, BATCH, learning=Preference(**fields), **steady)
    plan = ComputePlan(micro_batch=3, threads=1)
    trainer = Trainer(drawn(MODEL, 0), rows.as_stream(), settings, plan)
    losses = [step["loss"] for step in run(trainer, STEPS)]
    trainer.close()
    return losses


def worst_difference(ours, theirs):
    """Return the largest difference, relative to losses above 1."""
    return max(abs(x - y) / max(1.0, abs(y)) for x, y in zip(ours, theirs, strict=True))


def frozen(name):
    found = json.loads(FROZEN.read_text())
    return found[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in BY_DEFAULT else pytest.param(n, marks=pytest.mark.soak) for n in VARIANTS]
)
def test_twenty_losses_are_those_that_trl_has_computed(name):
    worst = worst_difference(our_losses(VARIANTS[name][0]), frozen(name))
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-5


def nl(x):
    """−log σ(x), as it is written in papers."""
    return torch.log(1 + torch.exp(-x))


def smoothed_dpo(p):
    z = 0.1 * ((p.a - p.b) - (p.r_w - p.r_l))
    return (0.8 * nl(z) + 0.2 * nl(-z)).mean()


def simpo(p):
    return nl(2.5 * (p.a / p.n_w - p.b / p.n_l) - 1.25).mean()


def orpo(p):
    w, l = torch.exp(p.a / p.n_w), torch.exp(p.b / p.n_l)  # noqa: E741 - as in the paper
    return (-torch.log(w) + 0.1 * nl(torch.log(w / (1 - w)) - torch.log(l / (1 - l)))).mean()


@pytest.mark.parametrize(
    ("loss_of", "fields"),
    [
        pytest.param(smoothed_dpo, {"loss": "dpo", "label_smoothing": 0.2}, marks=pytest.mark.soak),
        pytest.param(simpo, {"loss": "simpo"}, marks=pytest.mark.soak),
        (orpo, {"loss": "orpo"}),
    ],
)
def test_twenty_losses_that_trl_lacks_are_those_of_a_plain_model_in_fp64(loss_of, fields):
    rows, plain = rows_of_pairs(), PlainModel(drawn(MODEL, 0), LR)
    steps = [rows[step * BATCH : (step + 1) * BATCH] for step in range(STEPS)]
    theirs = [plain.step([pair for row in step for pair in row], loss_of) for step in steps]
    assert worst_difference(our_losses(fields), theirs) < 1e-5


@pytest.mark.soak
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="trl is not installed: uv sync --group trl brings it",
)
def test_trl_still_computes_the_same(tmp_path):
    for name, theirs in trls_losses(tmp_path).items():
        assert worst_difference(theirs, frozen(name)) < 1e-6, name


def main():
    with tempfile.TemporaryDirectory() as folder:
        FROZEN.write_text(json.dumps(trls_losses(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    main()
