"""What one_card.py measures on a card, part by part."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.plain_torch import PlainDecoder
from pion.bench import speed
from pion.bench.models import Bench, check_model, counting_trainer
from pion.config.model_config import ModelConfig
from pion.generation.step_graphs import compile_steps
from pion.model import chunks_of_logits
from pion.model.attention.attention import attend_flex
from pion.model.attention.masks import build_masks
from pion.model.decoder import Decoder
from pion.model.loss import linear_cross_entropy
from pion.train.card import words_about_attention
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer

# Kernels by what they do, by words in their names. The first that fits counts.
KINDS = {
    "attention": "flash|fmha|sdpa|flex|attention",
    "products": "gemm|nvjet|cutlass|xmma|splitk|cublas",
    "compiled": "triton",
    "copies and fills": "memcpy|memset|copy|fill",
    "eager": ".",
}
SEQ_LEN = 2048

# A number's name, the number, and its unit.
Found = tuple[str, float | str, str]


@dataclass(frozen=True)
class Scale:
    """What is computed: on a card, or in a rehearsal."""

    cuda: bool

    @property
    def bench(self) -> Bench:
        return Bench(torch.device("cuda", 0) if self.cuda else torch.device("cpu"), not self.cuda)

    def pick(self, large: int, small: int) -> int:
        return large if self.cuda else small

    def config(self, preset: str) -> ModelConfig:
        family = "tachyon" if preset.startswith("tachyon") else "pion"
        return ModelConfig.preset(preset) if self.cuda else check_model(family, tiny=True)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], times: int = 20) -> float:
        """Return what `work` takes once, after two warm-ups."""
        times = self.pick(times, 1)
        for _ in range(2):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return 1000 * (time.perf_counter() - started) / times

    def random(self, *shape: int, learned: bool = False) -> Tensor:
        made = torch.randn(shape, device=self.bench.device, dtype=torch.bfloat16)
        return made.requires_grad_(learned)


def both_ways(compute: Callable[[], Tensor], learned: list[Tensor]) -> Callable[[], None]:
    """Return the forward and backward pass of a computation."""

    def run() -> None:
        result = compute()
        torch.autograd.grad(result, learned, torch.ones_like(result))

    return run


def card(s: Scale) -> Iterator[Found]:
    """The versions, and what memory, products and launches reach."""
    yield "torch", f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}", ""
    yield "stage", str(words_about_attention(s.bench.device, flex=False)), ""
    one = torch.zeros(s.pick(2**28, 2**10), device=s.bench.device)
    other = torch.empty_like(one)
    took = s.milliseconds(lambda: other.copy_(one))
    yield "copy", 2 * one.nbytes / took / 1e9, "TB/s"
    n = s.pick(8192, 32)
    a, b = s.random(n, n), s.random(n, n)
    yield "product of 8192", 2 * n**3 / s.milliseconds(lambda: a @ b) / 1e9, "TFLOP/s"
    tiny, count = torch.zeros(1, device=s.bench.device), 1000

    def launch() -> None:
        for _ in range(count):
            tiny.add_(1)

    yield "launches", 1000 * s.milliseconds(launch) / count, "µs each"
    if s.cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        yield "launches by a graph", 1000 * s.milliseconds(graph.replay) / count, "µs each"


def attention(s: Scale) -> Iterator[Found]:
    """Forward and backward of three shapes by each kernel, with 1, 4 and 16 documents a row."""
    tokens = s.pick(SEQ_LEN, 64)
    for rows, heads, kv_heads, dim in ((16, 10, 2, 64), (16, 5, 1, 128), (16, 16, 4, 96)):
        rows = s.pick(rows, 1)
        sizes = heads, kv_heads, kv_heads
        q, k, v = (s.random(rows, n, tokens, dim, learned=True) for n in sizes)
        config = ModelConfig.preset(
            "pion-small", d_model=heads * dim, n_heads=heads, n_kv_heads=kv_heads, seq_len=tokens
        )
        ways: dict[str, Callable[[], Tensor]] = {}
        kernels = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
        for name, backend in kernels.items() if s.cuda else {"math": SDPBackend.MATH}.items():
            ways[f"causal by {name}"] = partial(by_sdpa, backend, q, k, v)
        for count in (1, 4, 16):
            numbers = torch.arange(tokens, device=q.device).repeat(rows, 1) // (tokens // count)
            if s.cuda:  # elsewhere, compiling takes half a minute
                mask = build_masks(config, numbers, tokens, numbers, kernel="flex")["full"]
                flex = partial(attend_flex, q, k, v, mask.blocks, None)
                ways[f"{count} documents by flex"] = flex
                ways[f"{count} documents by varlen"] = partial(by_varlen, count, q, k, v)
        forward_flops = 4 * rows * heads * tokens**2 * dim / 2
        for name, compute in ways.items():
            said = f"attention {rows} {heads}/{kv_heads} {dim}, {name}"
            try:
                forward = s.milliseconds(compute)
                total = s.milliseconds(both_ways(compute, [q, k, v]))
            except Exception as error:  # this torch, or this card, has no such kernel
                yield said, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:150]}", ""
                continue
            yield said, total, "ms"
            if name.startswith("causal"):
                yield f"{said} forward", forward_flops / forward / 1e9, "TFLOP/s"
                backward = 2.5 * forward_flops / (total - forward) / 1e9
                yield f"{said} backward", backward, "TFLOP/s"


def by_sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention by a backend of PyTorch."""
    with sdpa_kernel([backend]):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def by_varlen(count: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention within so many documents of equal lengths in each row, by PyTorch's
    attention of variable length. Pion does not use this kernel."""
    from torch.nn.attention.varlen import varlen_attn

    rows, _, tokens, _ = q.shape
    length = tokens // count
    bounds = torch.arange(0, rows * tokens + 1, length, dtype=torch.int32, device=q.device)
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
    mixed: Tensor = varlen_attn(  # type: ignore[assignment]
        q, k, v, bounds, bounds, length, length, window_size=(-1, 0), enable_gqa=True
    )
    return mixed.unflatten(0, (rows, tokens)).transpose(1, 2)


def products(s: Scale) -> Iterator[Found]:
    """The matrix products of two models, by both libraries of CUDA."""
    for preset in ("pion-small", "pion2-max-small"):
        with torch.device("meta"):
            model = Decoder(s.config(preset))
        block = [weight.shape for weight in model.layers[0].parameters() if weight.dim() == 2]
        shapes = sorted({tuple(shape) for shape in (*block, model.embed.weight.shape)})
        for library in ("cublas", "cublaslt") if s.cuda else ("none",):
            if s.cuda:
                torch.backends.cuda.preferred_blas_library(library)
            for rows in (s.pick(2**15, 8), s.pick(2**16, 16)):
                for n, k in shapes:
                    x, w, g = s.random(rows, k), s.random(n, k), s.random(rows, n)
                    for way, a, b in (("y", x, w.T), ("dx", g, w), ("dw", g.T, x)):
                        rate = 2 * rows * n * k / s.milliseconds(partial(torch.mm, a, b), 10) / 1e9
                        said = f"products of {preset}: {way} {rows}×{n}×{k} by {library}"
                        yield said, rate, "TFLOP/s"


def loss(s: Scale) -> Iterator[Found]:
    """The loss, by chunks of more rows."""
    rows, vocab, width = s.pick(2**15, 64), s.pick(50304, 128), s.pick(640, 32)
    hidden, weight = s.random(rows, width, learned=True), s.random(vocab, width, learned=True)
    targets = torch.randint(vocab, (rows,), device=hidden.device)
    compute = partial(linear_cross_entropy, hidden, weight, targets, compiled=s.cuda)
    for chunk in (2**12, 2**13, 2**14):
        chunks_of_logits.COMPILED_CHUNK_BYTES = 2 * vocab * chunk
        yield (
            f"loss, chunks of {chunk} rows",
            s.milliseconds(both_ways(compute, [hidden, weight])),
            "ms",
        )


@contextlib.contextmanager
def training(s: Scale, preset: str, rows: int, **plan: Any) -> Iterator[Trainer]:
    """Train a preset with steps of `rows` rows, in micro-batches of at most 32."""
    config, device = s.config(preset), s.bench.device
    settings = TrainSettings(steps=10**6, global_batch=rows, lr=1e-4, optimizer="muon")
    torch.manual_seed(0)
    with torch.device(device):
        model = Decoder(config)
    how: dict[str, Any] = {"dtype": "bfloat16", "residual": "bfloat16", "compile": s.cuda} | plan
    micro_batch = min(rows, 32)
    with contextlib.closing(
        counting_trainer(model, settings, ComputePlan(str(device), micro_batch=micro_batch, **how))
    ) as trainer:
        yield trainer


def without_graphs(trainer: Trainer) -> None:
    trainer._gradients.graphs.refused = "to compare"


def steps(s: Scale) -> Iterator[Found]:
    """Steps in a row: as they are, without graphs, and without combo kernels; and equal bits."""
    for preset in ("pion2-max-small", "pion-small", "tachyon-tiny"):
        for rows in (s.pick(16, 2), s.pick(64, 4)):
            for name, plan in {
                "as it is": {},
                "without graphs": {},
                "without combo kernels": {"combo_kernels": False},
            }.items():
                with training(s, preset, rows, **plan) as trainer:
                    if name == "without graphs":
                        without_graphs(trainer)
                    took = s.milliseconds(trainer.train_step, 10)
                    used = trainer._gradients.graphs.replays > 0
                yield (
                    f"{preset}, {rows} rows, {name}",
                    took,
                    f"ms, {'with' if used else 'no'} graphs",
                )
        states = []
        for captured in (True, False):
            with training(s, preset, s.pick(64, 4), deterministic=True, compile=False) as trainer:
                if not captured:
                    without_graphs(trainer)
                for _ in range(8):
                    trainer.train_step()
                states.append([weight.detach().clone() for weight in trainer.model.parameters()])
        alike = all(map(torch.equal, *states))
        yield f"{preset}: weights after 8 steps", "equal bits" if alike else "NOT EQUAL", ""


def profile(s: Scale) -> Iterator[Found]:
    """The kernels of a captured step, by kind; the largest; and what the host leaves between."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if s.cuda else []
    for preset in ("pion-small", "pion2-max-small"):
        with training(s, preset, s.pick(16, 2)) as trainer:
            whole = s.milliseconds(trainer.train_step, 5)
            with torch.profiler.profile(activities=kinds) as seen:
                trainer.train_step()
                s.wait()
        took = Counter[str]()
        for event in seen.events() or []:
            if event.device_type == torch.autograd.DeviceType.CUDA:
                took[event.name] += event.device_time_total / 1000
        by_kind = Counter[str]()
        for name, spent in took.items():
            kind = next(k for k, words in KINDS.items() if re.search(words, name.lower()))
            by_kind[kind] += spent
        yield f"kernels of {preset}", took.total(), f"of {whole:.1f} ms"
        for name, spent in [*by_kind.most_common(), *took.most_common(10)]:
            yield f"{preset}: {name[:90]}", spent, "ms"


def whole(s: Scale) -> Iterator[Found]:
    """A plain model of pion-small's shape, compiled as one function."""
    config, rows = s.config("pion-small"), s.pick(16, 1)
    model = PlainDecoder(config).to(s.bench.device)
    compute = torch.compile(model) if s.cuda else model
    tokens = torch.randint(config.vocab_size, (rows, config.seq_len), device=s.bench.device)

    def run() -> None:
        with torch.autocast(s.bench.device.type, torch.bfloat16):
            compute(tokens, tokens).backward()

    started = time.perf_counter()
    run()
    s.wait()
    yield "compilation as a whole", time.perf_counter() - started, "s"
    yield "compiled whole, forward and backward", s.milliseconds(run, 10), "ms"


def texts(s: Scale) -> Iterator[Found]:
    """Generation at once: with draws, and with the likeliest ids; then with compiled steps."""
    written = speed.generating_model

    def compiled(*given: Any) -> tuple[Decoder, str]:
        model, dtype = written(*given)
        compile_steps(model)
        return model, dtype

    for way, make in {"": written, ", compiled": compiled}.items():
        for count in (1, 16, 64, 256):
            with mock.patch.object(speed, "generating_model", make):
                outcome = speed.measure_generating(s.bench, s.config("pion-small"), count)
            for name in ("tokens_per_second", "tokens_per_second_likeliest"):
                rate = float(outcome.measures[name] or 0)
                took = f"({1000 * count / rate:.2f} ms a token of each)"
                yield f"{count} texts{way}, {name}", rate, took
