"""Texts are the same with CUDA graphs, and with graphs that can't be captured or are wrong.

There is no GPU here: a stand-in computes what a graph would replay. tests/cuda_rehearsal captures
real steps, on a card that is pretended.
"""

import logging
from functools import lru_cache, partial

import pytest
import torch

from pion.bench.models import check_model, scrambled
from pion.config.presets import FAMILIES
from pion.generation import step_graphs
from pion.generation.decoding import Decoding, cache_tokens
from pion.generation.fixed_step import FixedStep, shape_of
from pion.generation.generate import generate, generate_batch
from pion.generation.step_graphs import CAPTURED_STEP, StepGraphs, check_memory, why_without
from pion.model.attention.cache import KVCache
from pion.model.cuda_graph import say_without
from pion.model.decoder import Decoder

NEW_TOKENS, PROMPTS = 20, ([5, 6, 7, 8] * 4, [9, 3], [1] * 9)
SETTINGS = {"max_tokens": NEW_TOKENS, "stop_ids": (), "seed": 0}


class StandIn:
    """What a graph does, on a CPU. `wrong` is added to the logits of each replay."""

    made: list
    wrong, fails_at = 0.0, -1

    def __init__(self, device, other):
        self.replays = 0
        self.made.append(self)

    def computed(self, compute):
        return compute()

    def capture(self, compute):
        self.compute, self.shape = compute, compute.__self__._shape
        if self.fails_at == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 MiB")

    def replay(self):
        self.replays += 1
        if self.replays == self.fails_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        hidden, logits = self.compute()
        return hidden, logits + self.wrong


@pytest.fixture
def graphs(monkeypatch):
    """The stand-in, which is used instead of graphs."""

    class Fresh(StandIn):
        made: list = []  # noqa: RUF012

    monkeypatch.setattr(step_graphs, "CudaGraph", Fresh)
    monkeypatch.setattr(step_graphs, "check_memory", lambda device: None)
    monkeypatch.setattr(step_graphs, "why_without", lambda model: None)
    say_without.cache_clear()
    return Fresh


@pytest.fixture(scope="module")
def model():
    return scrambled(check_model("pion", tiny=True)).joined()


def continued(model, *, drafts=0):
    """Return the new ids of all prompts, of which two are continued at once."""
    new = [[] for _ in PROMPTS]
    for number, token in generate_batch(model, PROMPTS, rows=2, drafts=drafts, **SETTINGS):
        new[number] += [] if token is None else [token]
    return new


def without_graphs(work):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepGraphs, "step", lambda graphs, tokens: None)
        return work()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_same_with_graphs(family, graphs):
    model = scrambled(check_model(family, tiny=True)).joined()
    expected = without_graphs(lambda: continued(model))
    assert graphs.made == []
    assert continued(model) == expected
    assert list(generate(model, PROMPTS[0], **SETTINGS)) == expected[0]
    # Two texts together, one alone, and again one alone in a cache of its own.
    assert [made.shape.rows for made in graphs.made if not made.shape.fills] == [2, 1, 1]
    assert sum(made.replays for made in graphs.made) > NEW_TOKENS


def test_texts_with_drafts_are_the_same(model, graphs):
    repeating = {"logit_bias": {5: 4.0, 6: 4.0}, **SETTINGS}
    expected = list(generate(model, PROMPTS[0], **repeating))
    assert list(generate(model, PROMPTS[0], drafts=3, **repeating)) == expected
    assert graphs.made[-1].replays > 0


def test_a_shape_is_captured_once_and_replayed_once_for_each_token(model, graphs):
    list(generate(model, PROMPTS[0], **SETTINGS))
    (made,) = graphs.made
    # The prompt gives the first token.
    assert made.replays == NEW_TOKENS - CAPTURED_STEP


def test_also_the_first_results_of_a_graph_are_those_of_a_replay(model, graphs):
    """Else the bits would depend on how long a process lives."""
    graphs.wrong = 1e-4
    found, cache = [], KVCache(model.config, 16, 1)
    cache_tokens(model, [[3]], cache)
    steps = StepGraphs(model, cache, captured_step=1)
    for _ in range(2):
        found.append(steps.step([5])[1].clone())
        cache.cut(0, 1)
    assert torch.equal(*found)


def test_short_texts_capture_nothing(model, graphs):
    list(generate(model, PROMPTS[0], **SETTINGS | {"max_tokens": CAPTURED_STEP}))
    assert graphs.made == []


@pytest.mark.parametrize(
    ("mistake", "why"),
    [
        ({"fails_at": 0}, "OutOfMemoryError: CUDA out of memory."),
        ({"fails_at": 1}, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ({"fails_at": 4}, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ({"wrong": 0.1}, "a replayed step differs from the same step without a graph"),
        ({"wrong": float("nan")}, "a replayed step differs from the same step without a graph"),
    ],
)
def test_a_graph_that_fails_or_is_wrong_changes_no_text_and_is_logged_once(
    mistake, why, model, graphs, monkeypatch, caplog
):
    expected = without_graphs(lambda: continued(model))
    for name, value in mistake.items():
        monkeypatch.setattr(graphs, name, value)
    assert continued(model) == expected
    assert continued(model) == expected
    (record,) = caplog.records
    assert record.getMessage() == f"texts are continued without CUDA graphs: {why}"
    assert record.levelno == logging.WARNING
    assert len(graphs.made) == 2  # each cache has tried once


def test_the_graph_that_was_not_used_for_the_longest_time_makes_room(model, graphs, monkeypatch):
    monkeypatch.setattr(step_graphs, "MOST_GRAPHS", 2)
    cache = KVCache(model.config, model.config.seq_len, 3)
    with torch.inference_mode():
        model.hidden(torch.ones(3, 4, dtype=torch.int64), cache=cache)
    found = StepGraphs(model, cache, captured_step=1)
    for rows in (1, 2, 1, 3, 1, 2):
        assert found.step([1] * rows) is not None
    # Two rows made room for three, which then made room for two.
    assert [made.shape.rows for made in graphs.made] == [1, 2, 3, 2]


def test_nothing_is_captured_under_autocast(model, graphs):
    with torch.autocast("cpu", torch.bfloat16):
        list(generate(model, PROMPTS[0], **SETTINGS))
    assert graphs.made == []


def test_a_capture_leaves_memory_to_prompts(monkeypatch):
    monkeypatch.setattr(step_graphs, "free_memory", lambda device: 512 * 2**20 - 1)
    with pytest.raises(torch.OutOfMemoryError, match=r"^511 MiB .* less than 512$"):
        check_memory(torch.device("cuda"))


# ---------------------------------------------------------------- compiled steps


def compile_by(monkeypatch, backend):
    """Let steps be compiled by a backend of torch.compile, on a CPU that passes for a card."""
    by = partial(torch.compile, backend=backend, dynamic=True, fullgraph=True)
    monkeypatch.setattr(
        step_graphs, "compiled", lru_cache(lambda function, any_shape: by(function))
    )
    monkeypatch.setattr(step_graphs, "why_without", lambda model: None)
    torch._dynamo.reset()
    say_without.cache_clear()


WAYS = [pytest.param(family, "inductor", marks=pytest.mark.soak) for family in FAMILIES]


@pytest.mark.parametrize(("family", "backend"), [("pion", "aot_eager"), *WAYS])
def test_a_compiled_step_draws_the_same_tokens_and_is_compiled_for_all_rows(
    family, backend, monkeypatch, tmp_path
):
    """But the products of experts, whose shapes a card without graphs would have to know."""
    monkeypatch.setenv("TMPDIR", "/tmp")  # the C++ compiler fails at a path with a space
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"/tmp/{tmp_path.parent.name}")
    compile_by(monkeypatch, backend)
    model = scrambled(check_model(family, tiny=True)).joined()
    step_graphs.compile_steps(model)
    compute, counted = model.step, torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    assert (compute is None, before > 0) == (False, True)
    for rows in (1, 2, 3, 5):
        cache = KVCache(model.config, model.config.seq_len, rows)
        for row in range(rows):
            cache_tokens(model, [list(range(4 + row))], cache, row)
        tokens = [1] * rows
        for _ in range(9):  # a segment is filled, too
            step, drawn = FixedStep(model, cache, shape_of(cache, rows)), []
            step.write(tokens)
            for way in (None, compute):
                model.step = way
                drawn.append(step.compute()[1][:, 0].argmax(dim=1).tolist())
            tokens = drawn[0]
            assert drawn == [tokens, tokens]
            cache.grow(0, rows, 1)
    assert counted["unique_graphs"] == before or family == "tachyon"


def fails(graph, inputs):
    raise RuntimeError("no C++ compiler")


def doubles(graph, inputs):
    return lambda *given: [2 * each for each in graph(*given)]


@pytest.mark.parametrize(
    ("backend", "why"),
    [(fails, "RuntimeError: no C++ compiler"), (doubles, "ValueError: a compiled step differs")],
)
def test_a_step_that_is_not_compiled_or_wrong_is_computed_as_written(
    backend, why, model, monkeypatch, caplog
):
    compile_by(monkeypatch, backend)
    step_graphs.compile_steps(model)
    assert model.step is None
    (said,) = (each.getMessage() for each in caplog.records if each.name.startswith("pion"))
    assert said.startswith(f"texts are continued without a compiled step: {why}")


# ---------------------------------------------------------------- why there are no graphs


@pytest.fixture
def card(monkeypatch):
    """`card(model, major)`: why steps on a card of this capability can't be graphs."""

    def why(model, major):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        model.embed.weight = FakeWeight(model.embed.weight.detach())
        return why_without(model)

    class FakeWeight(torch.nn.Parameter):
        device = torch.device("cuda")

    return why


def test_a_cpu_has_none_and_says_nothing(model, caplog):
    assert Decoding(model, 1, 20).graphs.refused == "a cpu has no CUDA graphs"
    assert caplog.records == []


def test_gates_that_skip_layers_have_none(card):
    gated = Decoder(check_model("pion", tiny=True, gates=True))
    assert card(gated.twin(), 9) is None
    assert card(gated.with_gates(0.5), 9) == "the host counts the tokens that skip a layer"
