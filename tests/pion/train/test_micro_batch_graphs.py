"""Weights are the same with CUDA graphs, and with graphs that can't be captured or are wrong.

There is no GPU here: a stand-in computes what a graph would replay. tests/cuda_rehearsal captures
real micro-batches, on a card that is pretended.
"""

import logging
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from pion.bench.models import check_model
from pion.config.presets import FAMILIES
from pion.data.order import RowOrder
from pion.data.phased_order import MixPhase, PhasedOrder
from pion.model.cuda_graph import say_without
from pion.model.decoder import Decoder
from pion.train import micro_batch_graphs
from pion.train.micro_batch_graphs import MicroBatchGraphs, why_no_room, why_without
from pion.train.objective import CrossEntropy
from pion.train.phases import Phase
from pion.train.preference import Preference
from pion.train.preference_losses import PreferenceLoss
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import CONFIG, open_stream, run
from tests.pion.train.test_trainer import assert_identical
from tests.support.whole_state import whole_state

STEPS, ROWS = 8, 6
WARNING = "micro-batches are computed without CUDA graphs: "
DIFFERS = "ValueError: a replayed micro-batch differs from one without a graph"


class StandIn:
    """What a graph does, on a CPU. `wrong` is added to the gradients of each replay.

    `fails_at` is the capture (0) or the replay of a graph that fails, after it has begun.
    """

    made: list
    wrong, fails_at = 0.0, -1

    def __init__(self, device, other):
        self.replays = 0
        self.made.append(self)

    def computed(self, compute):
        return compute()

    def capture(self, compute):
        self.compute, self.params = compute, list(compute.func.__self__._model.parameters())
        before = [None if param.grad is None else param.grad.clone() for param in self.params]
        self.adds = any(gradient is not None for gradient in before)
        self.results, self.gradients = compute(), [param.grad for param in self.params]
        if self.fails_at == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 MiB")
        # A capture computes nothing: new memory has any values, and older memory keeps its own.
        for gradient, values in zip(self.gradients, before, strict=True):
            if gradient is not None:
                gradient.fill_(float("nan")) if values is None else gradient.copy_(values)

    def replay(self):
        held, self.replays = [param.grad for param in self.params], self.replays + 1
        for param, gradient in zip(self.params, self.gradients, strict=True):
            param.grad = gradient if self.adds else None
        found = self.compute()
        for param, gradient, before in zip(self.params, self.gradients, held, strict=True):
            if gradient is not None:
                gradient.copy_(param.grad + self.wrong)
            param.grad = before
        if self.replays == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 MiB")
        for static, new in zip(tensors(self.results), tensors(found), strict=True):
            static.copy_(new)
        return self.results


def tensors(measured):
    return [measured.loss, measured.aux, *measured.stats.values()]


@pytest.fixture
def graphs(monkeypatch):
    """The stand-in, which is used instead of graphs."""

    class Fresh(StandIn):
        made: list = []  # noqa: RUF012

    monkeypatch.setattr(micro_batch_graphs, "CudaGraph", Fresh)
    monkeypatch.setattr(micro_batch_graphs, "why_without", lambda *given, **how: None)
    say_without.cache_clear()
    return Fresh


def trainer(stream, micro_batch, config=CONFIG, **fields):
    torch.manual_seed(0)
    settings = TrainSettings(
        **{"steps": STEPS, "global_batch": ROWS, "lr": 1e-2, "optimizer": "muon"} | fields
    )
    return Trainer(Decoder(config), stream, settings, ComputePlan(micro_batch=micro_batch))


def trained(*given, **fields):
    """Return the state after all steps, and the losses and reports of each."""
    with closing(trainer(*given, **fields)) as training:
        metrics = run(training, STEPS)
        kept = ("loss", "grad_norm", "expert_load", "router_entropy")
        return whole_state(training), [[step.get(name) for name in kept] for step in metrics]


def assert_same_without_graphs(found, *given, **fields):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MicroBatchGraphs, "add", lambda *given: None)
        state, metrics = trained(*given, **fields)
    assert_identical(found[0], state)
    assert found[1] == metrics


# Rows of a micro-batch, how many graphs are captured, and how often the two are replayed.
WAYS = [(6, 1, [7]), (3, 2, [7, 7]), (2, 2, [7, 14]), (4, 1, [7])]


@pytest.mark.parametrize(("micro_batch", "count", "replays"), WAYS)
@pytest.mark.parametrize("conversations", [False, True])
def test_weights_are_the_same_with_graphs(
    micro_batch, count, replays, conversations, graphs, tmp_path
):
    """Of two micro-batches of 4 and 2 rows, the second one is computed without a graph."""
    stream = open_stream(tmp_path, conversations=conversations)
    found = trained(stream, micro_batch)
    assert [made.replays for made in graphs.made] == replays
    assert [made.adds for made in graphs.made] == [False, True][:count]
    assert_same_without_graphs(found, stream, micro_batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_reports_of_each_family_are_the_same(family, graphs, tmp_path):
    config = check_model(family, tiny=True)
    stream = open_stream(tmp_path, config=config)
    found = trained(stream, 2, config)
    assert [made.replays for made in graphs.made] == [7, 14]
    assert_same_without_graphs(found, stream, 2, config)


@pytest.mark.parametrize(
    ("name", "value", "why", "replays"),
    [
        ("fails_at", 0, "OutOfMemoryError: CUDA out of memory.", [0]),
        ("fails_at", 1, "OutOfMemoryError: CUDA out of memory.", [1]),
        ("fails_at", 3, "OutOfMemoryError: CUDA out of memory.", [2, 3]),
        ("wrong", 0.1, DIFFERS, [1]),
        ("wrong", float("nan"), DIFFERS, [1]),
        ("wrong", property(lambda graph: 0.1 if graph.adds else 0.0), DIFFERS, [1, 1]),
    ],
)
def test_a_graph_that_fails_or_is_wrong_changes_no_weight_and_is_logged_once(
    name, value, why, replays, graphs, text, monkeypatch, caplog
):
    """The plan stays as it is. In a later replay, some gradients of the step are there already."""
    monkeypatch.setattr(graphs, name, value)
    found = trained(text, 2)
    assert_same_without_graphs(found, text, 2)
    assert [record.getMessage() for record in caplog.records] == [WARNING + why]
    assert caplog.records[0].levelno == logging.WARNING
    assert [made.replays for made in graphs.made] == replays


def test_deterministic_gradients_have_to_be_equal_in_all_bits(graphs, text, monkeypatch):
    monkeypatch.setattr(graphs, "wrong", 1e-9)
    trained(text, 2)
    assert [made.replays for made in graphs.made] == [7, 14]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    trained(text, 2)
    assert [made.replays for made in graphs.made[2:]] == [1]


@pytest.mark.parametrize(
    ("family", "fields"),
    [("daisy", {"window_schedule": "cubic"}), ("pilon", {"phases": (Phase(top_k=1),)})],
)
def test_parts_whose_sizes_change_have_no_graph(family, fields, graphs, tmp_path):
    config = check_model(family, tiny=True)
    stream = open_stream(tmp_path, config=config)
    with closing(trainer(stream, 2, config, **fields)) as training:
        run(training, 3)
    assert graphs.made == []
    assert training._gradients.graphs.refused is None


def test_a_phase_of_longer_rows_and_one_of_other_angles_have_new_graphs(graphs, tmp_path):
    """A step without graphs comes first, and then a step that captures them."""
    order = RowOrder([7] * 5, "", seed=1, window=2)
    reads = [MixPhase(0, 18, {"a": 1}), MixPhase(18, 30, None, 2)]
    stream = open_stream(tmp_path)
    stream._order = PhasedOrder({"a": order}, reads, 0)
    half, config = CONFIG.seq_len, replace(CONFIG, seq_len=2 * CONFIG.seq_len)
    phases = (
        Phase(until=3, seq_len=half),
        Phase(until=6, seq_len=2 * half, rates={"head": 0}),
        Phase(seq_len=2 * half, rope_theta=5e4),
    )
    found = trained(stream, 2, config, phases=phases)
    assert_same_without_graphs(found, stream, 2, config, phases=phases)
    assert [made.replays for made in graphs.made] == [2, 4, 2, 4, 1, 2]


def test_a_step_that_is_abandoned_or_taken_back_changes_nothing(graphs, text):
    with closing(trainer(text, 2)) as training:
        run(training, 3)
        saved = whole_state(training)
        run(training, 1)
        answers = iter([False, False, True])
        assert training.train_step(lambda: next(answers)) is False
        run(training, 2)
        training.load(saved)
        run(training, STEPS - 3)
        found = whole_state(training)
    assert len(graphs.made) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MicroBatchGraphs, "add", lambda *given: None)
        assert_identical(found, trained(text, 2)[0])


def test_nothing_is_captured_under_autocast(graphs, text):
    with torch.autocast("cpu", torch.bfloat16):
        trained(text, 2)
    assert graphs.made == []


# ---------------------------------------------------------------- why there are no graphs


class FakeWeight(torch.nn.Parameter):
    device = torch.device("cuda")


@pytest.fixture
def why(monkeypatch):
    """`why(config, major=9, …)`: why micro-batches on a card of this capability are no graphs."""

    def found(config, major=9, *, objective=CrossEntropy(torch.ones(())), bf16=True, ranks=1):  # noqa: B008
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        model = Decoder(config)
        model.embed.weight = FakeWeight(model.embed.weight.detach())
        return why_without(model, objective, torch.bfloat16 if bf16 else torch.float32, ranks)

    memory(monkeypatch, free=79_000, kept=0, step=100)
    return found


def memory(monkeypatch, *, free, kept, step):
    mib = 2**20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * mib, 80_000 * mib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (900 + kept) * mib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 900 * mib)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (900 + step) * mib)


def test_a_cpu_has_none_and_says_nothing(text, caplog):
    with closing(trainer(text, 2)) as training:
        run(training, 2)
    assert training._gradients.graphs.refused == "a cpu has no CUDA graphs"
    assert caplog.records == []


def test_ranks_preferences_and_experts_in_slices_have_none(why):
    dense, experts = check_model("pion", tiny=True), check_model("tachyon", tiny=True)
    assert why(dense, 8) is None
    assert why(dense, ranks=2) == "the ranks exchange gradients during the backward pass"
    pairs = PreferenceLoss(Preference(), {})
    assert why(dense, objective=pairs) == "only a loss of target tokens is captured"
    assert why(experts) is None
    of_slices = "on this card, the host must know how many tokens each expert has"
    assert why(experts, 8) == f"in bfloat16 {of_slices}"
    assert why(experts, bf16=False) == f"in float32 {of_slices}"


@pytest.mark.parametrize(("free", "kept"), [(2511, 0), (100, 2411)])
def test_a_graph_leaves_memory_to_a_step_without_one(free, kept, monkeypatch):
    """What torch keeps without using it counts as free."""
    memory(monkeypatch, free=free, kept=kept, step=1000)
    assert why_no_room(torch.device("cuda")) == (
        "2511 MiB of the GPU's memory are free, and a graph next to a step needs 2512"
    )
    memory(monkeypatch, free=free + 1, kept=kept, step=1000)
    assert why_no_room(torch.device("cuda")) is None
