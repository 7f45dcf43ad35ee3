"""Phases: which step is in which phase, and what a phase freezes."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from pion.errors import BadInput
from pion.train.optimizer.optimizer import Optimizer
from pion.train.phases import Phase, check_phases_of_model, config_of_largest_phase
from pion.train.reinforce import WITHOUT_LOSS
from pion.train.schedule import fixed_until, plan_at
from pion.train.settings import TrainSettings
from pion.train.trainer import ComputePlan, Trainer
from tests.support.tiny_config import drawn, tiny_config

PRIMITIVES = {"n": 8, "rank": 4, "top_k": 3, "bands": [[0], [1]]}
CONFIG = tiny_config(
    activation="gelu", positions="learned", heads={"qk_norm": False}, primitives=PRIMITIVES
)
THREE = (
    Phase(until=0.2, rates={"recipe": 0}, top_k=8),
    Phase(until=0.5, rates={"primitive": 0, "others": 0.75}, rank=2),
    Phase(only_bands=(1,)),
)


def settings(phases=THREE, **fields):
    return TrainSettings(
        **{"steps": 10, "global_batch": 2, "lr": 1e-2, "schedule": "constant", "phases": phases}
        | fields
    )


def sizes(plan) -> tuple[int | None, int | None]:
    """Return the recipes' sizes and the rank that a step has; None: those of the model."""
    primitives = plan.parts.get("primitives")
    return (None, None) if primitives is None else (primitives.top_k, primitives.rank)


def trained(model, optimizer, step):
    """Update with random gradients at a step of the run; return the parameters that moved."""
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.randn(param.shape)
    optimizer.step(plan_at(optimizer.settings, step, CONFIG))
    return {
        name for name, param in model.named_parameters() if not torch.equal(param, before[name])
    }


def test_the_phase_of_a_step_depends_only_on_the_step():
    plans = [plan_at(settings(), step, CONFIG) for step in range(10)]
    assert [sizes(plan)[0] for plan in plans] == [8] * 2 + [3] * 3 + [None] * 5
    assert [sizes(plan)[1] for plan in plans] == [4] * 2 + [2] * 3 + [None] * 5
    assert [plan.rates["matrix"] for plan in plans] == [0.01] * 2 + [0.0075] * 3 + [0.01] * 5
    assert [plan.rates["primitive"] for plan in plans] == [0.01] * 2 + [0.0] * 3 + [0.01] * 5
    assert [plan.rates["recipe"] for plan in plans] == [0.0] * 2 + [0.0075] * 3 + [0.01] * 5


def test_a_phase_may_end_at_a_number_of_steps():
    at_seven = settings((Phase(until=7, top_k=1), Phase()))
    plans = [plan_at(at_seven, step, CONFIG) for step in range(10)]
    assert [sizes(plan)[0] for plan in plans] == [1] * 7 + [None] * 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_roles_and_bands_do_not_move(optimizer):
    model = drawn(CONFIG)
    optimize = Optimizer(model, settings(optimizer=optimizer))
    every = {name for name, _ in model.named_parameters()}
    recipes = {name for name in every if name.endswith("_recipe")}
    primitives = {name for name in every if name.startswith("bands.")}
    first_band = {name for name in every if name.startswith(("bands.0.", "blocks.0."))}
    assert trained(model, optimize, 0) == every - recipes
    assert trained(model, optimize, 2) == every - primitives
    assert trained(model, optimize, 5) == every - first_band


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_and_counts_of_what_is_frozen_stand_still(optimizer):
    model = drawn(CONFIG)
    optimize = Optimizer(model, settings(optimizer=optimizer))
    trained(model, optimize, 0)
    before = {name: tensor.clone() for name, tensor in optimize.state_tensors().items()}
    trained(model, optimize, 2)  # primitives are frozen
    for name, tensor in optimize.state_tensors().items():
        assert torch.equal(tensor, before[name]) == name.startswith("bands."), name
    groups = optimize.counts()["groups"]
    assert (groups["primitive.0"], groups["recipe.0"], groups["embedding"]) == (1, 1, 2)


def test_a_resumed_optimizer_continues_the_counts_of_each_group():
    """Recipes begin late: their bias correction counts from there, before and after a resume."""
    models = drawn(CONFIG), drawn(CONFIG)
    unbroken, first = (Optimizer(model, settings()) for model in models)
    for step in range(6):
        for model, optimizer in zip(models, (unbroken, first), strict=True):
            torch.manual_seed(step)
            trained(model, optimizer, step)
    resumed = Optimizer(models[1], settings())
    for name, tensor in resumed.state_tensors().items():
        tensor.copy_(first.state_tensors()[name])
    resumed.set_counts(first.counts())
    for model, optimizer in zip(models, (unbroken, resumed), strict=True):
        torch.manual_seed(6)
        trained(model, optimizer, 6)
    assert resumed.counts() == unbroken.counts()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters()):
        assert torch.equal(one, other), name


def test_frozen_parameters_do_not_count_in_the_norm():
    model = drawn(CONFIG)
    optimizer = Optimizer(model, settings())
    names = {id(param): name for name, param in model.named_parameters()}
    clipped = {names[id(param)] for param in optimizer.trained(plan_at(settings(), 2, CONFIG))}
    assert clipped == {name for name in names.values() if not name.startswith("bands.")}


def test_without_phases_the_optimizer_records_what_it_always_did():
    assert Optimizer(drawn(CONFIG), settings(())).counts() == {"steps": 0}


def test_steps_can_be_raised_only_if_no_phase_ends_at_a_share_of_them():
    assert fixed_until(settings()) == 0
    assert fixed_until(settings((Phase(until=7), Phase()))) == 10


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase(until=0.5), Phase(until=0.2), Phase()), "phases.1.until: the phase would end"),
        ((Phase(until=0.5), Phase(until=5), Phase()), "phases.1.until: the phase would end"),
        ((Phase(until=10), Phase()), "phases.0.until: the phase would end after step 10"),
        ((Phase(until=0), Phase()), "phases.0.until: the phase would end after step 0"),
        ((Phase(until=1.0), Phase()), "phases.0.until: 1.0 is no share of the steps"),
        ((Phase(until=-0.5), Phase()), "phases.0.until: -0.5 is no share of the steps"),
        ((Phase(), Phase()), "phases.0.until: missing"),
        ((Phase(until=5),), "phases.0.until: the last phase lasts to the end"),
        ((Phase(rates={"others": 0}),), "phases.0.rates: all roles are frozen"),
        ((Phase(rates={"recipe": -1}),), "phases.0.rates.recipe: -1 is below 0"),
        ((Phase(rates={"recipes": 1}),), "unknown role 'recipes'; did you mean 'recipe'?"),
    ],
)
def test_phases_that_no_run_can_have_are_refused(phases, message):
    with pytest.raises(BadInput) as refusal:
        settings(phases)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 9}, "phases.0.top_k: 9 must be from 1 to 8"),
        ({"rank": 5}, "phases.0.rank: 5 must be from 1 to 4"),
        ({"rank": 0}, "phases.0.rank: 0 must be from 1 to 4"),
        ({"only_bands": (2,)}, "phases.0.unfreeze: there is no band 2; the model has 2"),
    ],
)
def test_phases_that_the_model_can_not_have_are_refused(fields, message):
    with pytest.raises(BadInput) as refusal:
        check_phases_of_model((Phase(**fields),), CONFIG)
    assert message in str(refusal.value)


def test_a_model_without_primitives_has_no_recipes_to_size():
    dense = replace(CONFIG, primitives=None)
    check_phases_of_model((Phase(rates={"others": 0.5}),), dense)
    with pytest.raises(BadInput, match=r"phases\.0\.top_k: the model has no primitives"):
        check_phases_of_model((Phase(top_k=1),), dense)


def test_the_memory_plan_is_for_the_longest_recipes_of_any_phase():
    largest = config_of_largest_phase(THREE, CONFIG)
    assert largest.primitives.top_k == 8
    assert config_of_largest_phase((Phase(top_k=1),), CONFIG) == CONFIG
    assert config_of_largest_phase((), tiny_config()) == tiny_config()


def test_a_phase_that_trains_nothing_of_the_model_is_refused():
    only_gates = (Phase(rates={"gate": 1.0, "others": 0.0}),)
    with pytest.raises(BadInput, match="only gate would be trained: the model has none"):
        check_phases_of_model(only_gates, tiny_config())
    check_phases_of_model(only_gates, tiny_config(gates=True))
    with pytest.raises(BadInput, match="only gate would be trained: rewards teach none of these"):
        check_phases_of_model(only_gates, tiny_config(gates=True), WITHOUT_LOSS)


def test_metrics_have_the_entropy_of_recipes_and_the_primitives_in_use(text):
    model = drawn(CONFIG)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    no_phases = settings((), global_batch=4)
    with closing(Trainer(model, text, no_phases, ComputePlan("cpu", "float32", 4))) as it:
        it.train_step()
        (row,) = it.drain_metrics()
    entropies, used = [], []
    for layer in range(2):
        recipes = [state[f"blocks.{layer}.feedforward.{way}_recipe"] for way in ("up", "down")]
        shares = [recipe.softmax(-1) for recipe in recipes]
        entropies.append(float(sum(-(p * p.log()).sum() for p in shares)) / 2)
        # Each layer has its own band here, and so its own banks.
        used += [PRIMITIVES["top_k"]] * 2
    assert row["recipe_entropy"] == pytest.approx(entropies, rel=1e-5)
    assert row["primitives_used"] == used
