"""`pion check` warns of rates of every stage at which models are spoiled, or learn nothing."""

import pytest

from pipeline.rent.check.job import check_rates
from tests.support.jobs import tiny_job

PAIRS, PROMPTS = ({"sources": [{"kind": "jsonl", "path": f"{name}.jsonl"}]} for name in "pq")
PAIRS |= {"steps": 5}
PROMPTS |= {"steps": 5, "rewards": ["exact"], "max_tokens": 8}
SIMPO = PAIRS | {"loss": "simpo", "lr": 6e-6, "min_lr": 1e-6}


@pytest.mark.parametrize(
    ("stages", "rates", "large", "words"),
    [
        ({}, {"pretrain.lr": 0.02}, 0, "pretrain.lr 0.02 is above 0.005"),
        ({"prefer": PAIRS}, {"prefer.lr": 1e-3}, 1e9, "prefer.lr 0.001 is above 1e-05: models"),
        ({"prefer": SIMPO}, {}, 0, "6e-06 is above 5e-06: simpo has no reference that holds"),
        ({"reinforce": PROMPTS}, {"reinforce.lr": 1e-8}, 0, "is below 2e-07: rewards"),
        ({"reinforce": PROMPTS}, {"reinforce.lr": 1e-3}, 0, "above 2e-05"),
        ({"reinforce": PROMPTS}, {"reinforce.lr": 1e-2}, 1e9, "above 0.002"),
        ({"prefer": PAIRS, "reinforce": PROMPTS}, {"pretrain.muon_lr": 9}, 1e9, ""),
    ],
)
def test_rates_that_spoil_or_teach_nothing_are_warned_of(monkeypatch, stages, rates, large, words):
    monkeypatch.setattr("pipeline.rent.check.job.LARGE", large)
    job = tiny_job(**stages)
    job.pretrain.lr = 1e-3
    for path, rate in rates.items():
        stage, name = path.split(".")
        setattr(job.section(stage), name, rate)
    said = [row.words for row in check_rates(job) if row.ok is None]
    assert len(said) == bool(words), said
    assert words in "".join(said)
