"""A step that goes wrong numerically is found, named and never saved, and a rollback undoes it."""

import math
import pickle
import statistics
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pion.errors import BadInput, Trouble
from pion.model.decoder import Decoder
from pion.model.forward_pass import AS_THE_MODEL
from pion.model.params_and_flops import token_flops
from pion.train.metrics import StepMetrics, StepRecord
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import CONFIG, open_stream
from tests.support.ranks import ask_ranks
from tests.support.whole_state import same, train, whole_state

INF, NAN = math.inf, math.nan


class Faulty(Decoder):
    """A decoder that goes wrong on some rows: they multiply their batch's loss and gradient."""

    bad_rows: tuple[Tensor, ...] = ()
    loss_factor = 1.0
    gradient_factor = 1.0

    def losses(self, tokens, targets, *, positions=None, documents=None, options=AS_THE_MODEL):
        losses = super().losses(
            tokens, targets, positions=positions, documents=documents, options=options
        )
        if not any((tokens == row).all(dim=1).any() for row in self.bad_rows):
            return losses
        value = losses.ce.detach()
        wrong = losses.ce + (value * self.loss_factor - value)
        if wrong.requires_grad:
            wrong.register_hook(lambda gradient: gradient * self.gradient_factor)
        return losses._replace(ce=wrong)


def trainer(stream, *, bad_rows=(), loss=1.0, gradient=1.0, seed=0, plan=None, rank=0, **fields):
    torch.manual_seed(seed)
    model = Faulty(CONFIG)
    model.bad_rows = tuple(torch.as_tensor(stream.row(i).tokens) for i in bad_rows)
    model.loss_factor, model.gradient_factor = loss, gradient
    chosen = TrainSettings(**{"steps": 60, "global_batch": 6, "lr": 1e-2, **fields})
    return Trainer(model, stream, chosen, plan or ComputePlan(micro_batch=6, threads=1), rank=rank)


def trouble_of(ask: Callable[[], object]):
    with pytest.raises(Trouble) as raised:
        ask()
    return raised.value


def said(trouble) -> tuple[int, tuple[int, int], str]:
    return trouble.step, trouble.rows, trouble.what


# ---------------------------------------------------------------- not finite


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ({"loss": NAN}, "loss nan"),
        ({"loss": INF}, "loss inf"),
        ({"gradient": 1e30}, "gradient norm inf"),
        ({"gradient": NAN}, "gradient norm nan"),
        ({"loss": -INF, "gradient": NAN}, "loss -inf and gradient norm nan"),
    ],
)
def test_a_step_that_is_not_finite_is_named_with_what_it_gave_and_its_rows(text, fault, what):
    broken = trainer(text, bad_rows=[14], **fault)
    train(broken, 3)
    trouble = trouble_of(broken.drain_metrics)
    assert said(trouble) == (3, (12, 18), what)
    assert f"step 3 (rows 12 to 17) gave {what}" in str(trouble)


def test_rows_skipped_before_are_part_of_a_wrong_steps_range(text):
    broken = trainer(text, bad_rows=[10], loss=NAN)
    broken.skipped = [(2, 9)]
    train(broken, 1)
    assert said(trouble_of(broken.drain_metrics)) == (1, (0, 13), "loss nan")


@pytest.mark.parametrize("fault", [{"loss": NAN, "gradient": NAN}, {"loss": 50.0}])
def test_no_state_from_a_wrong_step_on_is_handed_out(long_text, fault):
    broken = trainer(long_text, bad_rows=[125], max_spike=3.0, **fault)
    train(broken, 20)
    good = whole_state(broken)
    for _ in range(3):
        train(broken, 1)
        assert said(trouble_of(broken.state)) == said(trouble_of(broken.drain_metrics))
    broken.load(good)
    assert broken.trouble() is None
    assert whole_state(broken).meta == good.meta


def test_rolling_back_and_skipping_rows_gives_the_weights_of_a_run_without_them(text):
    """Nothing of the wrong steps is left in weights, moments, counters or batches."""
    rewound = trainer(text, bad_rows=[25], loss=NAN, gradient=NAN, optimizer="muon")
    train(rewound, 2)
    good = whole_state(rewound)
    train(rewound, 5)
    trouble = trouble_of(rewound.drain_metrics)
    rewound.load(good)
    rewound.skipped = [trouble.rows]
    train(rewound, 8)

    never = trainer(text, optimizer="muon")
    never.skipped = [(24, 30)]
    train(never, 10)
    assert [m["step"] for m in rewound.drain_metrics()] == list(range(3, 11))
    mine, other = whole_state(rewound), whole_state(never)
    assert mine.meta == other.meta
    assert same(mine, other)


# ---------------------------------------------------------------- spikes


def test_a_loss_above_the_bound_is_wrong_and_names_the_median(long_text):
    sound = trainer(long_text)
    train(sound, 20)
    *losses, last = [m["loss"] for m in sound.drain_metrics()]
    spiking = trainer(long_text, bad_rows=[115], loss=10.0, max_spike=3.0)
    train(spiking, 20)
    step, rows, what = said(trouble_of(spiking.drain_metrics))
    assert (step, rows) == (20, (114, 120))
    median = statistics.median(losses)
    assert what == (f"loss {10 * last:.4g}, above 3 × the median {median:.4g} of the last 19 steps")


@pytest.mark.parametrize(("factor", "max_spike"), [(10.0, None), (0.01, 1.5), (10.0, 11.0)])
def test_a_loss_within_the_bound_or_without_one_is_not_wrong(long_text, factor, max_spike):
    bounded = trainer(long_text, bad_rows=[115], loss=factor, max_spike=max_spike, lr=1e-4)
    train(bounded, 21)
    assert len(bounded.drain_metrics()) == 21


@pytest.mark.parametrize(("known", "wrong"), [(15, False), (16, True)])
def test_a_spike_needs_sixteen_steps_to_be_measured_against(long_text, known, wrong):
    """The first losses of a run say little about the next."""
    early = trainer(long_text, bad_rows=[6 * known], loss=10.0, max_spike=3.0)
    train(early, known + 1)
    assert (early.trouble() is not None) == wrong


def test_a_resumed_run_measures_spikes_by_earlier_losses(long_text):
    fault = {"bad_rows": [115], "loss": 10.0, "max_spike": 3.0}
    unbroken = trainer(long_text, **fault)
    train(unbroken, 18)
    state = whole_state(unbroken)
    train(unbroken, 2)
    resumed = trainer(long_text, seed=9, **fault)
    resumed.load(state)
    train(resumed, 2)
    assert said(resumed.trouble()) == said(unbroken.trouble())


def test_a_checkpoint_without_recent_losses_can_be_resumed(long_text):
    first = trainer(long_text, max_spike=3.0)
    train(first, 18)
    state = whole_state(first)
    del state.meta["recent_losses"]
    resumed = trainer(long_text, bad_rows=[115], loss=10.0, max_spike=3.0)
    resumed.load(state)
    train(resumed, 2)
    assert [m["step"] for m in resumed.drain_metrics()] == [19, 20]


@pytest.mark.parametrize("max_spike", [1.0, 0.0, -3.0, NAN])
def test_a_bound_that_every_step_would_break_is_refused(max_spike):
    with pytest.raises(BadInput, match="max_spike"):
        TrainSettings(steps=1, global_batch=1, lr=1e-3, max_spike=max_spike)


# ---------------------------------------------------------------- any rank may ask at any time


def first_wrong(losses, max_spike):
    """Return the index of the first wrong step, in the simplest way: the specification."""
    for i, loss in enumerate(losses):
        before = losses[max(0, i - 64) : i]
        if not math.isfinite(loss):
            return i
        if len(before) >= 16 and loss > max_spike * statistics.median(before):
            return i
    return None


@given(
    losses=st.lists(st.floats(1.0, 4.0, width=32) | st.floats(1.0, 9.0, width=32), max_size=100),
    broken=st.none() | st.integers(0, 99),
    asks=st.lists(st.sampled_from(["drain", "trouble", "recent", ""]), min_size=100, max_size=100),
)
@settings(max_examples=50, deadline=None)
def test_the_time_of_asking_changes_no_trouble_and_no_metrics(losses, broken, asks):
    """Ranks ask at different steps: rank 0 when it saves too."""
    if broken is not None and broken < len(losses):
        losses[broken] = NAN
    collected = metrics_without_a_clock()
    reported = []
    for i, loss in enumerate(losses):
        collected.begin_step()
        collected.add(record(i + 1, loss))
        if asks[i] == "trouble":
            collected.trouble()
        elif asks[i] == "recent":
            collected.recent_losses()
        elif asks[i] == "drain" and collected.trouble() is None:
            reported += [m["step"] for m in collected.drain()]
    wrong = first_wrong(losses, max_spike=2.0)
    trouble = collected.trouble()
    last = trouble.metrics if trouble is not None else collected.drain()
    reported += [m["step"] for m in last]
    good = len(losses) if wrong is None else wrong
    assert (trouble.step - 1 if trouble is not None else None) == wrong
    assert reported == list(range(1, good + 1))
    assert collected.recent_losses() == losses[:good][-64:]


def metrics_without_a_clock(max_spike=2.0):
    flops = partial(token_flops, CONFIG)
    return StepMetrics(flops, ComputePlan(threads=1), clock=lambda: 0.0, max_spike=max_spike)


def record(step, loss, targets=8.0):
    numbers = (torch.tensor(value) for value in (loss, 1.0, targets))
    return StepRecord(step, (step - 1, step), 1e-3, *numbers, tokens=8, seq_len=8)


def test_a_step_without_targets_does_not_count_for_spikes():
    """The loss of such a step is 0. Any loss would exceed a median of such losses."""
    collected = metrics_without_a_clock()
    for step in range(1, 81):
        collected.begin_step()
        collected.add(record(step, 2.0, 8.0) if step % 4 == 0 else record(step, 0.0, 0.0))
    assert len(collected.drain()) == 80
    assert collected.recent_losses() == [2.0] * 20


def test_trouble_crosses_processes_whole():
    trouble = Trouble(7, (36, 42), "loss nan", [{"step": 6, "loss": 2.5}])
    arrived = pickle.loads(pickle.dumps(trouble))  # noqa: S301
    assert vars(arrived) == vars(trouble)
    assert str(arrived) == str(trouble)
    assert arrived.exit_code == 1


def work(rank, folder):
    """Run one of two ranks. Row 19, of the fourth step, is in the first rank's share."""
    stream = open_stream(folder / f"data{rank}")
    results = []
    faults = [{"loss": NAN}, {"gradient": 1e30}]
    for fault in faults:
        plan = ComputePlan(micro_batch=2, world_size=2, threads=1)
        broken = trainer(stream, bad_rows=[19], plan=plan, rank=rank, **fault)
        train(broken, 2)
        if rank == 0:
            broken.drain_metrics()  # as when it saves
        train(broken, 3)
        step, rows, what = said(broken.trouble())
        results.append([step, list(rows), what])
        broken.close()
    return results


def test_every_rank_finds_the_trouble_of_one_rank(tmp_path):
    nan, inf = [4, [18, 24], "loss nan"], [4, [18, 24], "gradient norm inf"]
    assert ask_ranks(work, tmp_path, 2) == [[nan, inf], [nan, inf]]
