"""Layers that share a bank: its gradient is one sum, of the primitives that each recipe chose."""

import pytest
import torch

from pion.model.forward_pass import StepOptions
from pion.model.pilon import shared_banks
from pion.model.pilon.bank_gradients import looked_up, outlet_of
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB
from tests.support.operations import Operations, tensors_in

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


def gradients(model, **options):
    """Return the gradients of a step with two rows."""
    tokens = torch.randint(0, VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    losses = model.losses(tokens, tokens.roll(-1, 1), options=StepOptions(**options))
    (losses.ce + losses.aux).backward()
    named = model.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}


# ---------------------------------------------------------------- one bank


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
    with Operations() as seen:
        total.backward()
    makers = {}
    for operation in seen.calls:
        places = {tensor.address for tensor in tensors_in(operation.given)}
        for made in tensors_in(operation.result):
            if made.shape == bank.shape and made.address not in places:
                makers[made.address] = operation.name
    assert list(makers.values()) == ["new_zeros"]
    assert [operation.name for operation in seen.calls if operation.adds_by_place] == []


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
