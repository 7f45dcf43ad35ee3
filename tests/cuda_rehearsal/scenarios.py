"""What is rehearsed, for each model in MODELS: training steps, evaluation and generation."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention

import pion
from pion.config.draft import Draft
from pion.config.model_config import ModelConfig
from pion.data.sequences import Sequences
from pion.data.stream import Batch
from pion.evaluation.held_out import Scorer, evaluate, score, summarize, summarize_responses
from pion.generation import step_graphs
from pion.generation.candidates import FEW
from pion.generation.decoding import Decoding
from pion.generation.rollouts import Rollout, Sampler
from pion.generation.step_graphs import CAPTURED_STEP
from pion.generation.text import Settings, Text, draw_together
from pion.model.attention import attention
from pion.model.attention.cache import KVCache
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder
from pion.model.draft_block import DraftBlock
from pion.model.loss import IGNORED
from pion.train import micro_batch_graphs
from pion.train.objective import CrossEntropy
from pion.train.phases import Phase
from pion.train.preference import Preference
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import Judged, Prompts
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.smaller_plan import StepDown
from pion.train.trainer import Trainer
from pipeline.state.checkpoints.snapshot import Snapshot
from tests.cuda_rehearsal.pretended_card import PretendedGraph, PretendedStream
from tests.cuda_rehearsal.report import Report
from tests.cuda_rehearsal.watch import Operation, Watch

# Two layers of the smallest preset show what more layers would show. With these numbers, the logits
# of a micro-batch have several chunks, in the loss and in the evaluation.
_SMALL = {"n_layers": 2, "vocab_size": 4100}
_SCALING = {"factor": 8.0, "original_max_position_embeddings": 512}
ROWS_AT_ONCE = 24
TOKENIZER_IDS = 4000

# Under soak, every model goes through every scenario. Add each new part of the architecture to a
# model. To save time, parts that do not meet are in one model.
MODELS: dict[str, ModelConfig] = {
    "dense": ModelConfig.preset("pion-nano", rope_scaling=_SCALING, **_SMALL),
    "experts": ModelConfig.preset("tachyon-tiny", softcap=50.0, tie_embeddings=False, **_SMALL),
    "windows": ModelConfig.preset(
        "daisy-pico",
        n_layers=3,
        vocab_size=4100,
        seq_len=512,
        windows={"tokens": 256},
        wiring={"attention_layers": [0, 2], "skips": [[2, 0]]},
        values={"layers": [0, 2]},
    ),
    "primitives": ModelConfig.preset(
        "pilon-48m", primitives={"bands": [[0, 1]]}, heads={"qkv_bias": True}, **_SMALL
    ),
    "slots": ModelConfig.preset(
        "pion-nano", slots={"per_segment": 4, "segment": 64, "window": 4}, **_SMALL
    ),
    # What models of others need.
    "mixture": ModelConfig.preset(
        "pion-nano",
        **{"norm": "layer", "norms": "both", "norm_offset": True, "parallel": "two norms"},
        **{"activation": "geglu", "feedforward_bias": True, "logit_cap": 8.0},
        **{"logit_cap_kind": "tanh", "scales": {"embeddings": 4.0, "residual": 0.5}},
        heads={"whole_norm": True, "output_bias": True, "rotary_pairs": True, "rotary_share": 0.5},
        windows={"tokens": 250, "block": 1, "full_layers": [1], "rope_theta": 1000.0},
        rope_scaling=_SCALING | {"kind": "yarn", "growth": 0.1},
        **_SMALL,
    ),
}

# Presets whose steps are too slow to rehearse in all scenarios.
WHOLE_MODELS = {name: ModelConfig.preset(name) for name in ("pion2-max-small", "tachyon-tiny")}
# The most that the host launches in a step whose micro-batches are captured.
MOST_LAUNCHES = 250

DRAFT = Draft(steps=2, ids=1000)
# The prompt is longer than the window.
MICRO_BATCHES, PROMPT_TOKENS, NEW_TOKENS = 2, 300, 4
ANSWERS = 4  # in a row of preferences
# Of a text's logits, the host copies the likeliest and their ids, and a few numbers more.
LIKELIEST = 2 * FEW + 4
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Dtype = Literal["bfloat16", "float32"]

# Runs the library once and returns two things: how many steps, micro-batches or tokens it did, and
# the objects whose tensors must be on the card now. Findings before its `watch.start()`, such as
# copying the model to the card, do not count.
Scenario = Callable[[Watch, ModelConfig], tuple[int, Any]]


class Zeros:
    """A stream of rows of zeros; with `documents`, each row is a packed conversation.

    With `sequences`, each row has so many answers.
    """

    def __init__(self, seq_len: int, documents: bool = False, sequences: int = 0) -> None:
        self.seq_len, self.documents, self.sequences = seq_len, documents, sequences

    def batch(self, indices: Sequence[int]) -> Batch:
        zeros = torch.zeros(len(indices), self.seq_len, dtype=torch.int64)
        targets = zeros.clone()
        if not self.documents:
            return Batch(zeros, targets, None, None)
        targets[:, ::2] = IGNORED  # in conversations, only the responses are learned
        answers = None
        if self.sequences:
            sums = torch.zeros(len(indices), self.sequences, dtype=torch.float64)
            side = torch.tensor([1, -1], dtype=torch.int8).repeat(self.sequences // 2)
            answers = Sequences(sums, sums.long() + 1, side.expand(sums.shape).contiguous())
        return Batch(zeros, targets, zeros.clone(), zeros.clone(), answers)

    def document_numbers(self, indices: Sequence[int], end_of_text: int) -> np.ndarray:
        return np.zeros((len(indices), self.seq_len), dtype=np.int64)


def make_trainer(
    config: ModelConfig,
    dtype: Dtype,
    *,
    optimizer: Literal["adamw", "muon"] = "adamw",
    recompute: bool = False,
    documents: bool = False,
    compiled: bool = False,
    phases: tuple[Phase, ...] = (),
    residual: Dtype = "float32",
    preference: Preference | None = None,
) -> Trainer:
    rows = ROWS_AT_ONCE * MICRO_BATCHES
    settings = TrainSettings(
        steps=10,
        global_batch=rows,
        lr=1e-3,
        optimizer=optimizer,
        phases=phases,
        learning=preference,
    )
    plan = ComputePlan(
        "cuda", dtype, ROWS_AT_ONCE, recompute=recompute, compile=compiled, residual=residual
    )
    stream = Zeros(config.seq_len, documents, ANSWERS if preference is not None else 0)
    return Trainer(Decoder(config), stream, settings, plan)


def train(watch, config, dtype, steps=1, **how):
    """Train `steps` of several micro-batches; count the steps."""
    with contextlib.closing(make_trainer(config, dtype, **how)) as trainer:
        watch.start()
        for _ in range(steps):
            trainer.train_step()
        return steps, trainer


def train_as_written(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step by the functions that a real card would compile."""
    with torch.compiler.set_stance("force_eager"):
        return train(watch, config, dtype, compiled=True)


def train_captured(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step by graphs that the step before captured; count the step.

    The host launches little more than the update.
    """
    how: dict[str, Any] = {"optimizer": "muon", "documents": True, "residual": dtype}
    launches = Counter[str]()

    def seen(operation: Operation) -> None:
        if is_launch(operation.func):
            launches[str(operation.func)] += 1

    with (
        torch.compiler.set_stance("force_eager"),
        mock.patch.object(watch, "seen", seen),
        contextlib.closing(make_trainer(config, dtype, compiled=True, **how)) as trainer,
    ):
        trainer.train_step()
        trainer.train_step()
        assert any("flex_attention" in name for name in launches)
        launches.clear()
        watch.start()
        trainer.train_step()
        graphs, given = trainer._gradients.graphs, (trainer.model, CrossEntropy(torch.ones(())))
        if micro_batch_graphs.why_without(*given, DTYPES[dtype], 1) is None:
            assert graphs.refused is None, graphs.refused
            assert watch.replays == MICRO_BATCHES
            assert launches.total() + watch.replays <= MOST_LAUNCHES, launches
        else:
            assert config.experts is not None
            assert watch.replays == 0
        return 1, trainer


def is_launch(func: Any) -> bool:
    """Return whether a card computes for an operation: it is no view, and not only new memory."""
    if not isinstance(func, torch._ops.OpOverload):
        return True
    return not func.is_view and "empty" not in func.name()


def train_preference(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step of pairs of answers."""
    return train(watch, config, dtype, documents=True, preference=Preference(sft_weight=0.1))


def train_rewards(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step of answers that share a prompt. What is sampled and judged is made up."""
    answers = [Rollout([1] * length, [0.0] * length) for length in (3, 1, 7, 2)]
    judged = Judged(torch.tensor([[0.0, 1, 0, 1]]).double(), {})
    prompts = Prompts(lambda row: [1] * 9, lambda *_: judged, config.seq_len, 9, frozenset(), 64)
    settings = TrainSettings(1, 1, 1e-3, learning=Reinforcement(len(answers), max_tokens=7))
    plan = ComputePlan("cuda", dtype, 1, rollout_rows=4)
    sampled = mock.patch.object(Sampler, "sample", return_value=[answers])
    with sampled, contextlib.closing(Trainer(Decoder(config), prompts, settings, plan)) as trainer:
        watch.start()
        trainer.train_step()
        return 1, trainer.model


def train_draft(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step of nothing but a draft block, behind a frozen model."""
    alone = Phase(rates={"draft": 1, "others": 0})
    return train(watch, replace(config, draft=DRAFT), dtype, phases=(alone,))


def drain(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train two steps, and read their losses at once; count the calls that read."""
    with contextlib.closing(make_trainer(config, dtype)) as trainer:
        trainer.train_step()
        trainer.train_step()
        watch.start()
        assert len(trainer.drain_metrics()) == 2
        return 1, trainer


def train_while_saving(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Train a step next to which the state is copied, from the call that begins to copy it.

    The update must wait for the copies, on the card.
    """
    order = list[str]()

    def wait(*event: Any) -> None:
        order.append("wait")

    def seen(operation: Operation) -> None:
        if operation.func is torch.ops.aten.copy_.default and operation.result.device.type == "cpu":
            order.append("copy")

    with (
        contextlib.closing(make_trainer(config, dtype)) as trainer,
        contextlib.closing(Snapshot()) as memory,
        mock.patch.object(PretendedStream, "wait_event", wait),
    ):
        trainer.train_step()
        state, update = trainer.state(), trainer.optimizer.step
        memory.reserve(state.model, state.optimizer)
        watch.start()
        with (
            mock.patch.object(watch, "seen", seen),
            mock.patch.object(
                trainer.optimizer, "step", lambda plan: (order.append("update"), update(plan))
            ),
        ):
            memory.take(state.model, state.optimizer, state.meta, state.side_copy)
            trainer.train_step()
        watch_findings = list(watch.findings)
        copies = len(state.model) + len(state.optimizer)
        assert order == ["copy"] * copies + ["wait", "update"]
    watch.findings = watch_findings  # the end of the memory waits for the copies
    return 1, trainer


def _scorer(config: ModelConfig, dtype: Dtype) -> Scorer:
    return Scorer(Decoder(config).to("cuda"), TOKENIZER_IDS, ROWS_AT_ONCE, DTYPES[dtype])


def evaluate_in_training(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Measure the held-out loss as the trainer does; count the micro-batches."""
    scorer = _scorer(config, dtype)
    watch.start()
    evaluate(scorer, Zeros(config.seq_len), range(ROWS_AT_ONCE * MICRO_BATCHES), end_of_text=0)
    return MICRO_BATCHES, scorer


def evaluate_text(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Measure the bits per byte of text; count the micro-batches."""
    scorer, bytes_of_ids = _scorer(config, dtype), np.ones(TOKENIZER_IDS, dtype=np.int64)
    watch.start()
    stream, rows = Zeros(config.seq_len), range(ROWS_AT_ONCE * MICRO_BATCHES)
    found, documents = score(scorer, stream, rows), stream.document_numbers(rows, 0)
    summarize(found.nll, found.targets, bytes_of_ids, documents)
    return MICRO_BATCHES, scorer


def evaluate_responses(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Measure the responses in packed conversations; count the micro-batches."""
    scorer = _scorer(config, dtype)
    watch.start()
    rows = range(ROWS_AT_ONCE * MICRO_BATCHES)
    talks = Zeros(config.seq_len, documents=True)
    summarize_responses(score(scorer, talks, rows), 0, talks.document_numbers(rows, 0))
    return MICRO_BATCHES, scorer


def falling(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Return made-up values for a copy of logits: no two of a row are equal. Ids are 1."""
    values = torch.ones(source.shape, dtype=dtype)
    if dtype.is_floating_point and source.ndim > 0:
        values *= torch.arange(source.shape[-1], 0, -1)
    return values


@contextlib.contextmanager
def few_copied(watch: Watch, most: int) -> Iterator[None]:
    """Let logits that the host copies be `falling`. Raise AssertionError if a copy of a text's
    has more than `most` numbers."""
    widest = 0

    def copied(source: Tensor, dtype: torch.dtype) -> Tensor:
        nonlocal widest
        widest = max(widest, *source.shape, 0)
        return falling(source, dtype)

    with mock.patch.object(watch, "values_of", copied):
        yield
    assert 0 < widest <= most


def generate(watch: Watch, config: ModelConfig) -> tuple[int, Any]:
    """Continue a prompt with a cache; count the new tokens."""
    model = Decoder(config).to("cuda")
    caches: list[KVCache] = []

    def keep(*arguments: Any, **settings: Any) -> KVCache:
        caches.append(KVCache(*arguments, **settings))
        return caches[-1]

    module = import_module("pion.generation.generate")
    where = import_module("pion.generation.decoding")
    watch.start()
    with mock.patch.object(where, "KVCache", keep), few_copied(watch, LIKELIEST):
        prompt = list(range(PROMPT_TOKENS))
        new = list(module.generate(model, prompt, max_tokens=NEW_TOKENS, stop_ids=(), seed=0))
    assert len(new) == NEW_TOKENS
    return NEW_TOKENS, (model, caches)


def generate_together(watch: Watch, config: ModelConfig) -> tuple[int, Any]:
    """Continue two prompts of different lengths together; count the forward passes."""
    model = Decoder(config).to("cuda")
    model = model.joined()
    caches: list[KVCache] = []

    def keep(*arguments: Any) -> KVCache:
        caches.append(KVCache(*arguments))
        return caches[-1]

    module = import_module("pion.generation.generate")
    where = import_module("pion.generation.decoding")
    watch.start()
    with mock.patch.object(where, "KVCache", keep), few_copied(watch, LIKELIEST):
        prompts = [list(range(PROMPT_TOKENS)), list(range(PROMPT_TOKENS // 2))]
        settings = {"max_tokens": NEW_TOKENS, "stop_ids": (), "seed": 0}
        new = [token for _, token in module.generate_batch(model, prompts, **settings)]
    assert sum(token is not None for token in new) == 2 * NEW_TOKENS
    # Both prompts are read in one pass, which gives the first new tokens. But one that is longer
    # than a window is read alone.
    alone = caches[0].most_together < PROMPT_TOKENS
    return NEW_TOKENS + alone, (model, caches)


@dataclass(frozen=True)
class _Continued:
    """Two texts of different lengths, which are continued together."""

    model: Decoder
    decoding: Decoding

    @classmethod
    def of(cls, config: ModelConfig, dtype: Dtype) -> _Continued:
        """Read the texts, and draw the first token of each."""
        weights = Decoder(config).state_dict()
        model = Decoder.from_state(config, weights, DTYPES[dtype]).to("cuda")
        settings = Settings(max_tokens=CAPTURED_STEP + 2 * NEW_TOKENS, stop_ids=(), seed=0)
        prompts = [list(range(count)) for count in (PROMPT_TOKENS, PROMPT_TOKENS // 2)]
        texts = [Text(model, prompt, settings) for prompt in prompts]
        decoding = Decoding(model, len(texts), texts[0].room)
        for text in texts:
            text.draw(decoding.read_alone(text)[0])
        return cls(model, decoding)

    def step(self, times: int) -> None:
        """Draw the next tokens so many times."""

        def draw(rows: Sequence[int], logits: Tensor) -> list[int | None]:
            drawn = draw_together([self.decoding.texts[row] for row in rows], logits)
            return [token if isinstance(token, int) else None for token in drawn]

        for _ in range(times):
            self.decoding.step(draw)


def replay(watch: Watch, config: ModelConfig, dtype: Dtype) -> tuple[int, Any]:
    """Continue two texts by a captured step; count the steps after the graph was compared.

    The step consists of the functions that a server on a real card would compile.
    """
    # The card has no values to compare.
    compared = mock.patch.object(step_graphs, "_largest_share", return_value=0.0)
    as_written = torch.compiler.set_stance("force_eager")
    with compared as compare, few_copied(watch, LIKELIEST), as_written:
        texts = _Continued.of(config, dtype)
        step_graphs.compile_steps(texts.model)
        assert (texts.model.step is None) == bool(step_graphs.why_without(texts.model))
        compare.reset_mock()
        texts.step(CAPTURED_STEP + 1)
        watch.start()
        texts.step(NEW_TOKENS)
    graphs = texts.decoding.graphs
    if step_graphs.why_without(texts.model) is None:
        assert graphs.refused is None, graphs.refused
        assert (graphs.captures, compare.call_count) == (1, 1)
        # One launch for each token, and no product is computed outside.
        assert (watch.replays, watch.matmuls) == (NEW_TOKENS, Counter())
    else:
        assert config.experts is not None
        assert (graphs.captures, watch.replays) == (0, 0)
    return NEW_TOKENS, (texts.model, texts.decoding) if dtype == "float32" else None


def replay_nothing(watch: Watch, config: ModelConfig) -> tuple[int, Any]:
    """Continue two texts where capturing fails, for want of memory; count all steps."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    failing = mock.patch.object(PretendedGraph, "capture_begin", side_effect=full)
    with failing as begin, few_copied(watch, LIKELIEST):
        texts = _Continued.of(config, "float32")
        watch.start()
        texts.step(CAPTURED_STEP + NEW_TOKENS)
    graphs = texts.decoding.graphs
    if step_graphs.why_without(texts.model) is None:
        assert begin.call_count == 1
        assert str(full) in str(graphs.refused)
    assert (graphs.captures, watch.replays) == (0, 0)
    lengths = [len(text.ids) for text in texts.decoding.texts]
    steps = CAPTURED_STEP + NEW_TOKENS
    assert lengths == [PROMPT_TOKENS + 1 + steps, PROMPT_TOKENS // 2 + 1 + steps]
    return steps, (texts.model, texts.decoding)


def guess(watch: Watch, config: ModelConfig) -> tuple[int, Any]:
    """Continue a prompt by tokens that a draft block guesses, all right; count the passes."""
    model = Decoder(replace(config, draft=DRAFT)).to("cuda")
    of_model = import_module("pion.generation.decoding")
    own = DraftBlock.guess
    guesses = mock.patch.object(DraftBlock, "guess", autospec=True, side_effect=own)
    passes = mock.patch.object(of_model, "cache_tokens", wraps=of_model.cache_tokens)
    watch.start()
    made_up = mock.patch.object(watch, "values_of", falling)
    with guesses as guessed, passes as passed, made_up:
        prompt = list(range(PROMPT_TOKENS))
        settings: dict[str, Any] = {"max_tokens": NEW_TOKENS, "stop_ids": (), "temperature": 0}
        # The card has no values: each id that a block guesses is 1.
        settings["logit_bias"] = {1: 100.0}
        new = list(pion.generate(model, prompt, drafts=DRAFT.steps, **settings))
    assert len(new) == NEW_TOKENS
    # The host waits once for each of these, and no more than once for each token.
    assert guessed.call_count > 0
    assert guessed.call_count + passed.call_count <= NEW_TOKENS
    return passed.call_count, model


# By name. The first word says what is counted, the last word is the dtype of the computation.
SCENARIOS: dict[str, Scenario] = {
    "train adamw bfloat16": functools.partial(train, dtype="bfloat16"),
    "twice adamw float32": functools.partial(train, dtype="float32", steps=2),
    "train muon bfloat16": functools.partial(train, dtype="bfloat16", optimizer="muon"),
    "train muon float32": functools.partial(train, dtype="float32", optimizer="muon"),
    "train recompute bfloat16": functools.partial(train, dtype="bfloat16", recompute=True),
    "train documents bfloat16": functools.partial(train, dtype="bfloat16", documents=True),
    "train compiled bfloat16": functools.partial(train_as_written, dtype="bfloat16"),
    "train compiled float32": functools.partial(train_as_written, dtype="float32"),
    "train residual bfloat16": functools.partial(train, dtype="bfloat16", residual="bfloat16"),
    "train draft bfloat16": functools.partial(train_draft, dtype="bfloat16"),
    "captured bfloat16": functools.partial(train_captured, dtype="bfloat16"),
    "captured float32": functools.partial(train_captured, dtype="float32"),
    "train preference bfloat16": functools.partial(train_preference, dtype="bfloat16"),
    "rewards bfloat16": functools.partial(train_rewards, dtype="bfloat16"),
    "drain bfloat16": functools.partial(drain, dtype="bfloat16"),
    "evaluate in training bfloat16": functools.partial(evaluate_in_training, dtype="bfloat16"),
    "evaluate text float32": functools.partial(evaluate_text, dtype="float32"),
    "evaluate responses bfloat16": functools.partial(evaluate_responses, dtype="bfloat16"),
    "generate float32": generate,
    "generate together float32": generate_together,
    "guess float32": guess,
    "capture saving bfloat16": functools.partial(train_while_saving, dtype="bfloat16"),
    "replay float32": functools.partial(replay, dtype="float32"),
    "replay bfloat16": functools.partial(replay, dtype="bfloat16"),
    "fail to replay float32": replay_nothing,
}


@dataclass(frozen=True)
class Rehearsal:
    """A model's scenario on a card, by their names."""

    model: str
    scenario: str
    card: str = "A40"

    def __str__(self) -> str:
        return f"{self.model} on {self.card}: {self.scenario}"


# Experts compute in another way on a card with kernels for grouped products, in bf16. An RTX 5090
# is newer than an H100 but has no such kernels. The suite has the first.
ON_OTHER_CARDS = [
    Rehearsal("experts", "train adamw bfloat16", "H100"),
    Rehearsal("experts", "replay bfloat16", "H100"),
    Rehearsal("experts", "captured bfloat16", "H100"),
    *(Rehearsal(name, "captured bfloat16", "H100") for name in WHOLE_MODELS),
    Rehearsal("experts", "train recompute bfloat16", "H100"),
    Rehearsal("experts", "twice adamw float32", "H100"),
    Rehearsal("experts", "evaluate in training bfloat16", "H100"),
    Rehearsal("experts", "train adamw bfloat16", "RTX 5090"),
]

# What the suite rehearses, besides experts on an H100: of each kind of layers one. two_ranks.py
# trains with Muon, and odd_cards.py copies a state while a step computes. Soak has the rest.
IN_SUITE = {
    "train adamw bfloat16": ("dense", "experts"),
    "train draft bfloat16": ("slots",),
    "rewards bfloat16": ("dense",),
    "evaluate text float32": ("slots",),
    "generate together float32": ("windows",),
    "replay float32": ("dense",),
    "captured bfloat16": ("dense", "windows"),
}

_EVERYWHERE = [Rehearsal(model, scenario) for model in MODELS for scenario in SCENARIOS]
REHEARSALS = {
    "suite": [
        *(each for each in _EVERYWHERE if each.model in IN_SUITE.get(each.scenario, ())),
        ON_OTHER_CARDS[0],
    ],
    "all": [*_EVERYWHERE, *ON_OTHER_CARDS],
}


def rehearse(watch: Watch, config: ModelConfig, scenario: Scenario) -> Report:
    """Run the scenario, and report what `watch` saw. An exception ends only this scenario."""
    rotary_table.cache_clear()
    watch.free_page_locked()
    watch.start()
    report = Report()
    try:
        with flex_attention_without_compiler():
            report.units, kept = scenario(watch, config)
    except Exception:
        report.error = traceback.format_exc()
    else:
        report.tensors = {
            name: f"{tensor.device} {tensor.dtype}" for name, tensor in tensors_in(kept)
        }
    report.findings = watch.findings
    report.matmuls = dict(watch.matmuls)
    return report


@contextlib.contextmanager
def flex_attention_without_compiler() -> Iterator[None]:
    """Call flex attention directly: fake tensors know its shapes, and compiling takes seconds."""
    flag, direct = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", flex_attention.flex_attention
    with (
        mock.patch.object(flex_attention, flag, True),
        mock.patch.object(attention, "_flex_attention", return_value=direct),
    ):
        yield


def refuse(change: StepDown) -> None:
    """Raise RuntimeError, where a trainer would compute a step in another way than its plan."""
    raise RuntimeError(change.why)


def tensors_in(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that `value` holds, with its path: in modules, containers and our objects.

    A tensor or object that several others hold is yielded once.
    """
    seen: set[int] = set()

    def walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield path, value
            return
        inside: dict[Any, Any] = {}
        if isinstance(value, dict):
            inside = value
        elif isinstance(value, list | tuple):
            inside = dict(enumerate(value))
        elif isinstance(value, nn.Module) or type(value).__module__.startswith("pion."):
            inside = vars(value)
        for name, part in inside.items():
            yield from walk(part, f"{path}.{name}" if path else str(name))

    yield from walk(value, "")
