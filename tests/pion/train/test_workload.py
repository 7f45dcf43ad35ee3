"""What of a workload decides the memory of a micro-batch."""

from dataclasses import replace

import pytest

from pion.config.model_config import ModelConfig
from pion.train.workload import WITH_GROUPED, WITHOUT_GROUPED, Workload

DENSE, EXPERTS = ModelConfig.preset("pion-small"), ModelConfig.preset("tachyon-tiny")
WORK = Workload(EXPERTS, 512, "bfloat16", "muon", "cuda", documents=False)


@pytest.mark.parametrize(
    ("changes", "capability"),
    [
        ({}, WITH_GROUPED),  # an unknown GPU counts as one that needs more
        ({"capability": (10, 0)}, WITH_GROUPED),
        ({"capability": (7, 5)}, WITHOUT_GROUPED),
        ({"config": DENSE, "capability": (10, 0)}, WITHOUT_GROUPED),
        ({"device": "cpu"}, WITHOUT_GROUPED),
    ],
)
def test_a_gpu_matters_only_to_experts(changes, capability):
    assert replace(WORK, **changes).traced().capability == capability


def test_what_a_micro_batch_does_not_see_gives_the_same_trace():
    others = replace(WORK, optimizer="adamw", sampling=8, ranks=4, capability=(10, 0))
    assert others.traced() == WORK.traced()
    assert replace(WORK, compile=True).traced() != WORK.traced()
    on_cpu = replace(WORK, device="cpu", compile=True)
    assert not on_cpu.traced().compile
