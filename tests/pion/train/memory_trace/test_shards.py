"""The memory of a sharded step, compared with what torch's FSDPMemTracker counts of FSDP2 itself.

A fake group stands for the other ranks, and fake tensors for the weights. The tracker hooks into
`forward`, and not into the methods that `register_fsdp_forward_method` registers: so `losses`, as
it was before, is the model's `forward` here. A registered one would run FSDP's hooks twice. What
follows the passes, such as the optimizer's step, the tracker does not see.
"""

import contextlib
import dataclasses
import gc
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import add_lora, additions
from pion.model.params_and_flops import shapes_and_roles
from pion.train import sharding
from pion.train.memory import predict_memory
from pion.train.memory_trace.stand_ins import OPENED, replaced, stand_ins
from pion.train.shard_rules import KEPT_WHOLE, part_of
from pion.train.sharding import Shards
from pion.train.workload import Workload
from tests.cuda_rehearsal.fake_group import fake_group

MOST = 1.2  # a prediction is never under what is counted, and never over by more than this

# A preset of each family. Daisy and PILON name their layers, and can't have fewer.
FAMILIES = {
    "pion-small": {"n_layers": 4},
    "pion2-small": {},
    "tachyon-tiny": {"n_layers": 4},
    "lepton-small": {"n_layers": 4},
    "daisy-pico": {},
    "pilon-48m": {},
}


def counted(config, ranks, rows, dtype, *, recompute):
    """Return the most bytes at once in a micro-batch, on rank 0 of a fake group. Gradients of an
    earlier micro-batch are there."""
    bf16, cpu = dtype == "bfloat16", torch.device("cpu")
    with (
        fake_group(ranks),
        a_mesh_of_numbers(ranks),
        FakeTensorMode(allow_non_fake_inputs=True),
        stand_ins("cpu", (8, 6)),
        replaced(decoder, "draw_weights", lambda *a, **k: None),
    ):
        model = Decoder(config)
        Shards(model, cpu, torch.bfloat16 if bf16 else torch.float32, 0, ranks)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.forward = partial(Decoder.losses, model)
        tokens = torch.zeros(rows, config.seq_len, dtype=torch.int64)
        tracker = FSDPMemTracker(model)
        with tracker, Opened(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = model(tokens, tokens, options=StepOptions(recompute=recompute))
            total = losses.ce + losses.aux * 0.1
            del losses
            total.backward()
        peak = tracker.get_tracker_snapshot("peak")
        return int(max(kinds["Total"] for kinds in peak.values()))


class Opened(TorchDispatchMode):
    """Runs the bodies of operations of which the tracker would see only the results.

    Inside, the products of experts need up to 100 MiB in these models.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return OPENED.get(func, func)(*args, **(kwargs or {}))


@contextlib.contextmanager
def a_mesh_of_numbers(ranks):
    """Let `sharding.py` have a mesh that is made before tensors are fake: it reads its numbers."""
    mesh = init_device_mesh("cpu", (ranks,))
    with replaced(sharding, "init_device_mesh", lambda *a: mesh):
        yield


def predicted(config, ranks, rows, dtype, *, recompute):
    work = Workload(config, config.seq_len, dtype, "adamw", "cpu", False, ranks=ranks, sharded=True)
    found = predict_memory(work, micro_batch=rows, recompute=recompute)
    return found.weights + max(found.loss, found.backward)


def check(config, ranks, dtype, *, recompute):
    gc.collect()
    there = counted(config, ranks, 1, dtype, recompute=recompute)
    ratio = predicted(config, ranks, 1, dtype, recompute=recompute) / there
    assert 1 <= ratio <= MOST, f"{ratio:.3f} of {there:,} bytes"


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_prediction_is_never_under_and_at_most_20_percent_over(recompute):
    config = ModelConfig.preset("tachyon-tiny", n_layers=2, seq_len=128, vocab_size=4096)
    check(config, 8, "bfloat16", recompute=recompute)


SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 160}
SMALL = ModelConfig(**SHAPE, vocab_size=512, seq_len=64)
DIVIDED = {"lora": Lora(rank=4), "ranks": 3, "sharded": True}
LORA = Workload(SMALL, 64, "bfloat16", "adamw", "cpu", documents=False, **DIVIDED)


@pytest.mark.usefixtures("untraced")
def test_a_frozen_base_is_counted_in_the_dtype_in_which_it_is_kept():
    asked = dataclasses.replace(LORA, lora=Lora(rank=4, base_dtype="bfloat16"))
    large, small = (
        predict_memory(work, micro_batch=1, recompute=False).weights for work in (LORA, asked)
    )
    frozen = sum(
        part_of(shape, 3, role)
        for shape, role in shapes_and_roles(LORA.config)
        if role not in KEPT_WHOLE
    )
    assert large - small == 2 * frozen


@pytest.mark.usefixtures("untraced")
def test_the_additions_of_the_rank_that_has_the_most_are_counted():
    """4 rows over 3 ranks are 2, 2 and none. The model is wide: small tensors are rounded up."""
    config = dataclasses.replace(LORA.config, d_model=1024, d_ff=2048)
    with torch.device("meta"):
        model = Decoder(config)
        add_lora(model, Lora(rank=4), seed=0)
    most = sum(part_of(each.shape, 3, "matrix") for each in additions(model).values())
    work = dataclasses.replace(LORA, config=config)
    found = predict_memory(work, micro_batch=1, recompute=False)
    assert found.optimizer >= 8 * most


@pytest.mark.soak
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("ranks", [4, 8, 16, 64])
@pytest.mark.parametrize("preset", FAMILIES)
def test_the_prediction_holds_for_each_family(preset, ranks, dtype, recompute):
    config = ModelConfig.preset(preset, **FAMILIES[preset])
    check(config, ranks, dtype, recompute=recompute)
