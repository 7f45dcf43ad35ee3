"""Models of other families compute what their classes in transformers compute, also in training.

Rows of tokens are longer than the windows. test_stock_rows.py compares longer rows.
"""

from functools import lru_cache

import pytest
import torch

from pion.config.lora import Lora
from pion.formats.huggingface.architectures import architecture_named, from_transformers
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import LoraProjection, add_lora, additions
from tests.support.stock_models import NAMES, STOCK, randomize, stock_model, stored, tokens
from tests.support.tiny_config import tiny_config

TOKENS = tokens(101, rows=2)
GIVEN, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
each_name = pytest.mark.parametrize("name", NAMES)


@lru_cache(maxsize=1)
def theirs_of(name):
    return stock_model(name)


def ours_of(name):
    theirs = theirs_of(name)
    return Decoder.from_state(*from_transformers(theirs.config.to_dict(), stored(theirs)))


@each_name
def test_logits_and_gradients_are_those_of_transformers(name):
    theirs, ours = theirs_of(name), ours_of(name)
    logits = theirs(GIVEN, use_cache=False).logits
    torch.testing.assert_close(ours(GIVEN), logits, rtol=2e-5, atol=2e-5)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())
    theirs.zero_grad()
    loss.backward()
    own = ours.loss(GIVEN, TARGETS)
    own.backward()
    torch.testing.assert_close(own, loss, rtol=2e-6, atol=2e-6)
    gradients = {name: weight.grad for name, weight in stored(theirs, parameters=True).items()}
    _, expected = from_transformers(theirs.config.to_dict(), gradients)
    for name, weight in ours.named_parameters():
        largest = expected[name].abs().max()
        assert largest > 0, name
        apart = (weight.grad - expected[name]).abs().max() / largest
        assert apart <= 2e-5, name


@each_name
@pytest.mark.parametrize("joined", [False, True], ids=["plain", "joined"])
@torch.no_grad()
def test_with_a_cache_at_odd_splits_hidden_states_are_those_of_the_whole(name, joined):
    model = ours_of(name)
    whole = model.hidden(GIVEN)
    model = model.joined() if joined else model
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in GIVEN.split((73, 1, 1, 20, 5), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=2e-5, atol=2e-5)


@each_name
@torch.no_grad()
def test_packed_documents_are_as_each_alone(name):
    model = ours_of(name)
    first, second = GIVEN[:1, :70], GIVEN[1:, :100]
    positions = torch.cat([torch.arange(70), torch.arange(100)])[None]
    documents = torch.tensor([[0] * 70 + [1] * 100])
    packed = model.hidden(torch.cat([first, second], 1), positions=positions, documents=documents)
    alone = torch.cat([model.hidden(first), model.hidden(second)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=2e-5, atol=2e-5)


@each_name
def test_recomputed_gradients_are_the_same(name):
    model, found = ours_of(name), []
    for recompute in (False, True):
        model.zero_grad()
        options = StepOptions(recompute=recompute)
        model.loss(GIVEN, TARGETS, options=options).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@each_name
@torch.no_grad()
def test_new_additions_of_lora_change_nothing(name):
    model = ours_of(name)
    expected = model(GIVEN)
    add_lora(model, Lora(), seed=0)
    assert torch.equal(model(GIVEN), expected)


# ---------------------------------------------------------------- LoRA

LORA = Lora(rank=4, alpha=8.0)
# Biases, windows with two thetas, fused matrices, and a matrix that is fused by heads.
IN_SUITE = ("Qwen2.5", "Gemma 3", "Phi-4-mini", "Pythia")
# In fp32, gradients are up to 7e-6 apart. It depends on the processor, too.
ROUNDED = 1e-5


def with_peft(theirs, ours):
    """Return the stock model with the additions of ours, and of each of ours the view of them.

    A fused matrix has the A of all its parts, and the B of a part in the part's rows and columns.
    """
    from peft import LoraConfig, get_peft_model

    parts = {name: p for name, p in ours.named_modules() if isinstance(p, LoraProjection)}
    architecture = architecture_named(theirs.config.to_dict())
    fused = {}
    for name, rows in architecture.sources(ours.config, [f"{n}.weight" for n in parts]).items():
        part = name.removesuffix(".weight")
        if part in parts:  # all matrices that are fused are returned
            matrix = rows[0].name.removesuffix(".weight")
            fused.setdefault(matrix, {})[part] = [slice(first, last) for _, first, last in rows]
    model = get_peft_model(
        theirs,
        LoraConfig(
            r=LORA.rank,
            lora_alpha=LORA.alpha,
            target_modules=list(fused),
            rank_pattern={matrix: LORA.rank * len(some) for matrix, some in fused.items()},
            alpha_pattern={matrix: LORA.alpha * len(some) for matrix, some in fused.items()},
        ),
    )
    views = {}
    for matrix, some in fused.items():
        module = model.get_submodule(f"base_model.model.{matrix}")
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        learned = torch.zeros_like(b)
        for part, (name, rows) in enumerate(some.items()):
            columns = slice(part * LORA.rank, (part + 1) * LORA.rank)
            index = torch.cat([torch.arange(len(b))[each] for each in rows])
            views[name] = a, b, columns, index
            with torch.no_grad():
                a[columns] = parts[name].lora_a
                b[index, columns] = parts[name].lora_b
                learned[index, columns] = 1
        b.register_hook(learned.mul)
    return model, parts, views


def largest_difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    "name", [n if n in IN_SUITE else pytest.param(n, marks=pytest.mark.soak) for n in STOCK]
)
def test_with_the_same_additions_logits_gradients_and_steps_are_pefts(name):
    ours = ours_of(name)
    add_lora(ours, LORA, seed=1)
    torch.manual_seed(2)
    for each, tensor in additions(ours).items():
        if each.endswith("lora_b"):
            tensor.normal_(std=0.1)
    model, parts, views = with_peft(stock_model(name), ours)
    both = [[p for p in each.parameters() if p.requires_grad] for each in (ours, model)]
    optimizers = [torch.optim.AdamW(each, lr=1e-3, weight_decay=0.0) for each in both]
    losses = []
    for step in range(3):
        logits = model(GIVEN, use_cache=False).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())
        expected.backward()
        loss = ours.loss(GIVEN, TARGETS)
        loss.backward()
        losses.append((loss.item(), expected.item()))
        if step == 0:
            apart = largest_difference(ours(GIVEN).detach(), logits.detach())
            gradients = {
                f"{each}.{kind}": largest_difference(found.grad, theirs)
                for each, (a, b, columns, index) in views.items()
                for kind, found, theirs in (
                    ("lora_a", parts[each].lora_a, a.grad[columns]),
                    ("lora_b", parts[each].lora_b, b.grad[index, columns]),
                )
            }
            print(f"{name}: logits {apart:.1e}, gradients {max(gradients.values()):.1e}")
            assert apart <= 4e-6
            wrong = {n: d for n, d in gradients.items() if d > ROUNDED}
            assert not wrong
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-5)
    assert losses[2][0] < losses[0][0] - 1e-3


@torch.no_grad()
def test_documents_in_rows_that_are_not_longer_than_a_window_attend_as_without_windows():
    """On a CPU, they attend one after another in such long rows."""
    found = []
    for windows in (None, {"tokens": 700, "block": 1, "full_layers": [1]}, {"tokens": 1400}):
        model = Decoder(tiny_config(windows=windows and {"block": 7} | windows))
        randomize(model)
        tokens = torch.arange(700)[None]
        found.append(model.hidden(tokens % 61, positions=tokens % 20, documents=tokens // 20 % 34))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@torch.no_grad()
def test_tokens_beyond_a_ring_of_keys_see_what_they_see_in_the_whole_row():
    windows = {"tokens": 7, "block": 1, "full_layers": [1]}
    model = Decoder(tiny_config(seq_len=120, windows=windows))
    randomize(model)
    given = torch.randint(0, 64, (2, 120), generator=torch.Generator().manual_seed(2))
    whole = model.hidden(given)
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in given.split((60, *[1] * 30, 30), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
