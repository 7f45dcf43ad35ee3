"""Compare what models compute on the card with the CPU: logits, generated ids, steps by graphs."""

import dataclasses

import torch
from torch import Tensor

from pion.bench.models import Bench, check_model, exact_float32, scrambled, twin
from pion.bench.results import Outcome, judged
from pion.config.model_config import ModelConfig
from pion.config.presets import FAMILIES
from pion.generation.decoding import cache_tokens
from pion.generation.fixed_step import FixedStep, shape_of
from pion.generation.generate import generate
from pion.generation.step_graphs import StepGraphs, why_without
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from tests.gpu.differences import largest, largest_difference

# The most that a logit may differ.
LIMIT = 1e-4
ROWS = 2
NEW_TOKENS = 16
# By name, the family: a model whose scores and logits are capped, and models that do not see all.
KINDS = {"capped": "pion", "windowed": "daisy", "slots": "lepton"}


def check_logits(bench: Bench, family: str) -> Outcome:
    """Compare the logits of rows of text and of rows of several documents."""
    config = _without_rounding(check_model(family, bench.tiny))
    model = scrambled(config)
    copy = twin(model, bench.device)
    tokens = torch.randint(config.vocab_size, (ROWS, config.seq_len))  # seeded by `scrambled`
    places = torch.arange(config.seq_len)
    # Documents of different lengths, whose ends are inside the blocks of a window.
    documents = places * torch.tensor([[5], [3]]) // config.seq_len
    worst = {}
    with exact_float32(), torch.no_grad():
        for rows, numbers in (("text", None), ("documents", documents)):
            expected = model(tokens, documents=numbers)
            there = None if numbers is None else numbers.to(bench.device)
            found = copy(tokens.to(bench.device), documents=there)
            worst[rows] = largest_difference(found, expected)
    return judged(
        all(value <= LIMIT for value in worst.values()),
        f"largest difference {largest(worst.values()):.1e}, at most {LIMIT:.0e}",
        **worst,
        limit=LIMIT,
    )


def _without_rounding(config: ModelConfig) -> ModelConfig:
    """Return the model without ternary weights and rounded inputs.

    With them, a change of the weights by a millionth changes logits by 0.03, so that nothing could
    be compared.
    """
    if config.primitives is None:
        return config
    smooth = dataclasses.replace(config.primitives, ternary=False, activation_bits=0)
    return dataclasses.replace(config, primitives=smooth)


def check_generation(bench: Bench, kind: str) -> Outcome:
    """Generate greedily on the card; compare the logits of each step and the chosen ids.

    The prompt is longer than the window, and the continuation begins inside a block.
    """
    caps = {"softcap": 20.0, "logit_cap": 15.0} if kind == "capped" else {}
    config = check_model(KINDS[kind], bench.tiny, **caps)
    model = scrambled(config)
    copy = twin(model, bench.device)
    prompt = torch.randint(config.vocab_size, (config.seq_len * 5 // 8,)).tolist()
    with exact_float32(), torch.no_grad():
        new = list(generate(copy, prompt, stop_ids=(), max_tokens=NEW_TOKENS, temperature=0))
        ids = torch.tensor([prompt + new])
        expected = model(ids)[0, len(prompt) - 1 : -1]
        difference = largest_difference(_cached_logits(copy, ids, len(prompt)), expected)
    chosen = expected.gather(1, ids[0, len(prompt) :, None])[:, 0]
    # The chosen ids are the CPU's too, or as likely except for rounding.
    short = float((expected.amax(dim=1) - chosen).max())
    return judged(
        difference <= LIMIT and short <= LIMIT,
        f"largest difference {difference:.1e}, at most {LIMIT:.0e}; {len(new)} ids",
        difference=difference,
        short_of_likeliest=short,
        limit=LIMIT,
    )


def _cached_logits(model: Decoder, ids: Tensor, prompt: int) -> Tensor:
    """Return the logits after the prompt and after each new id but the last, from a cache."""
    cache = KVCache(model.config, max_tokens=ids.shape[1])
    there = ids.to(model.embed.weight.device)
    pieces = [there[:, :prompt], *there[:, prompt:-1].split(1, dim=1)]
    return torch.stack([model(piece, cache=cache)[0, -1] for piece in pieces])


def check_graphs(bench: Bench) -> Outcome:
    """Continue two texts of each family by CUDA graphs; compare the logits of each step.

    The texts have different lengths, and one is longer than the window. Where a family can have no
    graph, as on a CPU, the operations that a graph would have are computed one by one.
    """
    differences: dict[str, float] = {}
    without: dict[str, str] = {}
    for family in FAMILIES:
        model = scrambled(_without_rounding(check_model(family, bench.tiny)))
        differences[family], refused = _graph_difference(model, twin(model, bench.device))
        if refused is not None:
            without[family] = refused
    worst = largest(differences.values())
    said = "".join(f"; {family} has none: {why}" for family, why in without.items())
    return judged(
        worst <= LIMIT,
        f"largest difference {worst:.1e}, at most {LIMIT:.0e}{said if bench.on_cuda else ''}",
        **differences,
        limit=LIMIT,
        graphs=", ".join(family for family in FAMILIES if family not in without),
    )


def _graph_difference(model: Decoder, copy: Decoder) -> tuple[float, str | None]:
    """Return how much logits of steps by graphs differ from the model's, and why there is none.

    The difference is infinite if a graph should be possible and is not.
    """
    size = model.config.seq_len
    ids, lengths = torch.randint(model.config.vocab_size, (2, size)), (size * 5 // 8, size // 5)
    cache = KVCache(model.config, size, rows=2)
    graphs, differences = StepGraphs(copy, cache, captured_step=1), [0.0]
    with exact_float32(), torch.no_grad():
        expected = model(ids)
        for row, length in enumerate(lengths):
            cache_tokens(copy, [ids[row, :length].tolist()], cache, row)
        for step in range(NEW_TOKENS):
            at = [length + step for length in lengths]
            tokens = [int(ids[row, place]) for row, place in enumerate(at)]
            found = graphs.step(tokens) or _fixed_step(copy, cache, tokens)
            wanted = torch.stack([expected[row, place] for row, place in enumerate(at)])
            differences.append(largest_difference(found[1][:, 0], wanted))
    if graphs.refused != why_without(copy):
        differences.append(float("inf"))
    return largest(differences), graphs.refused


def _fixed_step(model: Decoder, cache: KVCache, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Compute a step as a graph would, but without the graph."""
    step = FixedStep(model, cache, shape_of(cache, len(tokens)))
    step.write(tokens)
    results = step.compute()
    cache.grow(0, len(tokens), 1)
    return results
