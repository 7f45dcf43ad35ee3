"""Layers that share a bank: its gradient is one sum, of the primitives that each recipe chose."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pion.model.forward_pass import StepOptions
from pion.model.pilon import shared_banks
from pion.model.pilon.bank_gradients import looked_up, outlet_of
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB

N, RANK, WIDTH = 6, 2, 5
CHOSEN = [torch.tensor(numbers) for numbers in ([0, 3], [5, 3], [3, 1])]


def a_bank():
    return torch.randn(N, RANK, WIDTH, requires_grad=True)


def lookups(bank):
    """Return what each recipe of CHOSEN looks up, one after the other."""
    rows, rest = [], bank
    for chosen in CHOSEN:
        outlet, rest = outlet_of(rest, chosen)
        rows.append(looked_up(bank, chosen, outlet))
    return rows


class Made(TorchDispatchMode):
    """Writes down the names of operations, and which of them make a tensor of a size.

    An index_put that adds up has "accumulate" in its name.
    """

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.names = set()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        adds = "index_put" in name and any(value is True for value in args)
        self.names.add(f"{name} accumulate" if adds else name)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            if tensor.shape == self.size and tensor.data_ptr() not in before:
                self.storages[tensor.data_ptr()] = name
        return result


def gradients(model, **options):
    """Return the gradients of a step with two rows."""
    tokens = torch.randint(0, VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    losses = model.losses(tokens, tokens.roll(-1, 1), options=StepOptions(**options))
    (losses.ce + losses.aux).backward()
    named = model.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}


# ---------------------------------------------------------------- one bank


def test_a_lookup_returns_the_chosen_primitives():
    bank = a_bank()
    for rows, chosen in zip(lookups(bank), CHOSEN, strict=True):
        assert torch.equal(rows, bank[chosen])


def test_an_outlet_takes_no_memory():
    outlet, rest = outlet_of(a_bank(), CHOSEN[0])
    assert outlet.shape == (2, RANK, WIDTH)
    assert outlet.untyped_storage().nbytes() == outlet.element_size()
    assert rest.shape == (N, RANK, WIDTH)


def test_the_gradient_is_summed_from_the_last_recipe_to_the_first():
    """Primitive 3 is in all recipes. In any other order, one of the small gradients is lost."""
    bank = a_bank()
    weights = [1.0, -1e8, 1e8]  # of the recipes, from the first to the last
    total = sum(weight * rows.sum() for weight, rows in zip(weights, lookups(bank), strict=True))
    total.backward()
    assert bank.grad[:, 0, 0].tolist() == [1, 1e8, 0, 1, 0, -1e8]


def test_a_recipe_that_nothing_reads_adds_nothing():
    bank = a_bank()
    first, _, last = lookups(bank)
    (first.sum() + last.sum()).backward()
    assert bank.grad[:, 0, 0].tolist() == [1, 1, 0, 2, 0, 0]


def test_a_frozen_bank_gets_no_gradient():
    bank = a_bank().detach()
    assert not any(rows.requires_grad for rows in lookups(bank))


def test_a_backward_pass_makes_one_gradient_of_the_bank_and_adds_nothing_by_place():
    """On a GPU, what is added by place is added in an order that changes from run to run."""
    bank = a_bank()
    total = torch.stack([rows.square().sum() for rows in lookups(bank)]).sum()
    with Made(bank.shape) as made:
        total.backward()
    assert list(made.storages.values()) == ["new_zeros"]
    sums = ("accumulate", "index_add", "scatter_add", "scatter_reduce")
    assert {name for name in made.names if any(sum_ in name for sum_ in sums)} == set()


# ---------------------------------------------------------------- a model


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", ["pilon", "ternary", "routed-recipes"])
def test_gradients_are_those_of_plain_indexing_bit_by_bit(monkeypatch, family, recompute):
    banks = FAMILIES[family].config().to_dict()["primitives"] | {"bands": [[0, 1]]}
    ours = gradients(FAMILIES[family].decoder(primitives=banks), recompute=recompute)
    with monkeypatch.context() as patch:
        patch.setattr(shared_banks, "_with_outlet", lambda recipe, *_: recipe)
        plain = gradients(FAMILIES[family].decoder(primitives=banks), recompute=recompute)
    assert ours.keys() == plain.keys()
    assert "bands.0.up.factors" in ours
    for name, expected in plain.items():
        assert torch.equal(ours[name], expected), name


def test_a_pass_without_a_backward_pass_has_no_outlets(monkeypatch):
    model = FAMILIES["pilon"].decoder()
    monkeypatch.setattr(shared_banks, "_with_outlet", lambda *_: pytest.fail("has outlets"))
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
