"""The micro-batch: what is predicted that it needs, and which one is chosen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.train import micro_batch
from pion.train.memory import predict_memory
from pion.train.micro_batch import choose_micro_batch
from pion.train.workload import Workload

GIB = 2**30
DEMO = ModelConfig(
    d_model=256, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=704, vocab_size=512, seq_len=128
)

LONG = replace(DEMO, seq_len=2048)


def workload(config, **fields):
    defaults = {
        "seq_len": config.seq_len,
        "dtype": "float32",
        "optimizer": "adamw",
        "device": "cpu",
        "documents": False,
    }
    return Workload(config, **defaults | fields)


def predicted(config, *, micro_batch=2, recompute=False, **fields):
    work = workload(config, **fields)
    return predict_memory(work, micro_batch=micro_batch, recompute=recompute)


def chosen(config, gib, *, rows_per_rank=64, recompute=None, device="cuda"):
    work = workload(config, dtype="bfloat16", device=device)
    memory = int(gib * GIB)
    return choose_micro_batch(
        work, rows_per_rank=rows_per_rank, memory_bytes=memory, recompute=recompute
    )


@pytest.mark.usefixtures("untraced")
def test_optimizer_state_is_two_moments_of_every_weight_and_muon_keeps_one_of_a_matrix():
    small = ModelConfig.preset("pion-small")
    params = 102_967_168
    adamw = predicted(small, optimizer="adamw")
    assert adamw.optimizer == pytest.approx(8 * params, rel=1e-3)
    assert adamw.weights == pytest.approx(8 * params, rel=1e-3)
    muon = predicted(small, optimizer="muon")
    assert 4 * params < muon.optimizer


@pytest.mark.usefixtures("recorded_traces")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.soak)])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_larger_micro_batch_needs_more_and_recomputing_needs_less(dtype, recompute):
    small = ModelConfig.preset("pion-small")
    sizes = [
        predicted(small, micro_batch=rows, dtype=dtype, recompute=recompute, device="cuda").total
        for rows in (1, 2, 3, 8, 32)
    ]
    less = predicted(small, micro_batch=8, dtype=dtype, recompute=True, device="cuda").total
    assert sizes == sorted(set(sizes))
    assert less <= sizes[3]


@pytest.mark.parametrize(
    ("mib", "joined", "expected"),
    [
        (1230, 1, (16, False)),
        (1230, 16, (16, False)),  # one long row has as many tokens
        (1130, 1, (8, False)),
        (1130, 16, (16, True)),  # it fits only if activations are recomputed
    ],
)
def test_a_longer_row_fits_too_where_some_are_read(mib, joined, expected):
    work = workload(LONG, documents=True, seq_len=128)
    memory = mib * 2**20 / 0.9
    found = choose_micro_batch(work, rows_per_rank=16, memory_bytes=memory, joined=joined)
    assert found == expected


def test_a_longer_row_may_need_more_than_as_many_tokens_in_rows(monkeypatch):
    def need(work, *, micro_batch, recompute):
        return SimpleNamespace(total=micro_batch * work.seq_len**2)

    monkeypatch.setattr(micro_batch, "predict_memory", need)
    room = {"rows_per_rank": 16, "memory_bytes": 64**2 / 0.9 + 1}
    work = workload(DEMO, seq_len=16)
    assert choose_micro_batch(work, **room) == (16, False)
    assert choose_micro_batch(work, **room, joined=4) == (4, False)


def test_a_longer_row_that_does_not_fit_is_named():
    with pytest.raises(BadInput, match=r"one row of 2048 tokens needs .* shorter rows \(seq_len\)"):
        choose_micro_batch(
            workload(LONG, seq_len=128), rows_per_rank=16, memory_bytes=700 * 2**20, joined=16
        )


@pytest.mark.usefixtures("recorded_traces")
@given(st.integers(1, 300), st.floats(6, 140))
@hypothesis_settings(max_examples=12, deadline=None)
def test_what_is_chosen_fits_and_cuts_a_steps_rows_evenly(rows, gib):
    small = ModelConfig.preset("pion-small")
    micro_batch, recompute = chosen(small, gib, rows_per_rank=rows)
    needed = predicted(
        small, micro_batch=micro_batch, dtype="bfloat16", recompute=recompute, device="cuda"
    )
    assert needed.total <= 0.9 * gib * GIB
    grad_accum = -(-rows // micro_batch)
    assert micro_batch * grad_accum - rows < grad_accum  # no micro-batch is short by more than 1


@pytest.mark.usefixtures("recorded_traces")
def test_more_memory_means_a_larger_micro_batch_up_to_what_is_useful():
    small = ModelConfig.preset("pion-small")
    sizes = [chosen(small, gib)[0] for gib in (8, 16, 24, 48, 80, 141)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert sizes[-1] == 32  # 65,536 tokens


@pytest.mark.usefixtures("recorded_traces")
@pytest.mark.parametrize("most", [1, 2, 24, 32])
def test_the_largest_power_of_two_that_fits_is_chosen(most):
    work = workload(ModelConfig.preset("pion-small"), dtype="bfloat16", device="cuda")
    for gib in range(3, 40, 3):
        try:
            found = choose_micro_batch(
                work, rows_per_rank=most, memory_bytes=gib * GIB, recompute=False
            )[0]
        except BadInput:
            found = 0
        sizes = [1, *(size for size in (2, 4, 8, 16, 32) if size <= most)]
        needs = {size: predict_memory(work, micro_batch=size, recompute=False) for size in sizes}
        fits = [size for size in sizes if needs[size].total <= int(0.9 * gib * GIB)]
        best = max(fits, default=0)
        assert found == (best and -(-most // -(-most // best)))


@pytest.mark.usefixtures("recorded_traces")
def test_activations_are_recomputed_only_where_one_row_would_not_fit_otherwise():
    xl = ModelConfig.preset("pion-xl")
    assert chosen(xl, 80)[1] is False
    assert chosen(xl, 20) == (pytest.approx(6, abs=2), True)
    assert chosen(xl, 80, recompute=True)[1] is True


@pytest.mark.usefixtures("recorded_traces")
def test_on_a_cpu_a_micro_batch_stays_at_a_few_thousand_tokens():
    assert chosen(DEMO, 64, device="cpu", rows_per_rank=512) == (32, False)


@pytest.mark.usefixtures("recorded_traces")
def test_a_model_that_does_not_fit_is_refused_with_what_it_needs_and_what_there_is():
    with pytest.raises(BadInput, match=r"needs \d+\.\d GiB, and 7\.2 of this machine's 8\.0 GiB"):
        chosen(ModelConfig.preset("pion-xl"), 8)
    with pytest.raises(BadInput, match="or allow recompute"):
        chosen(ModelConfig.preset("pion-xl"), 20, recompute=False)


@pytest.mark.usefixtures("recorded_traces")
def test_a_cpu_needs_memory_for_the_boolean_masks_of_windows():
    config = ModelConfig.preset(
        "daisy-pico",
        n_layers=3,
        wiring={"attention_layers": [0, 2], "skips": [[2, 0]]},
        values={"layers": [0, 2]},
        vocab_size=512,
    )
    sizes = [
        predict_memory(
            Workload(config, 4096, "float32", "adamw", device, documents=True),
            micro_batch=2,
            recompute=True,
        ).activations
        for device in ("cpu", "cuda")
    ]
    # Two rows and two reaches. The tables of flex attention are small beside these masks.
    assert sizes[0] - sizes[1] >= 0.99 * 2 * 2 * 4096**2
