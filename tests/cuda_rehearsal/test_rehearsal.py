"""The library does what it should on a pretended CUDA card, with every model of scenarios.py."""

import functools

import pytest

from tests.cuda_rehearsal import scenarios
from tests.cuda_rehearsal.scenarios import IN_SUITE, MICRO_BATCHES, REHEARSALS, Rehearsal

MODELS = scenarios.MODELS | scenarios.WHOLE_MODELS
# Parts of the optimizer's tensors, which have names of their own.
VIEWS = "optimizer._pieces."
# How often the host may wait for the card: in a training step, a call that reads losses, a batch of
# an evaluation, and for a token. A graph waits twice, to be captured and compared ("capture": two).
MOST_HOST_SYNCS = {
    **{"train": 0, "drain": 1, "evaluate": 1, "generate": 1, "guess": 2},
    **{"rewards": 8, "replay": 1, "fail": 2, "captured": 0, "capture": 4, "twice": 2},
}
TRAIN = ("train", "twice", "capture")
# How often each of these passes through the layers; recomputing activations is one more pass.
PASSES = MOST_HOST_SYNCS | dict.fromkeys(("captured", *TRAIN), MICRO_BATCHES)
PASSES |= {"drain": 0, "guess": 1, "fail": 1, "rewards": 1}
# Where sliced products of experts copy to the host where the slices end.
SLICES = "pion/model/feedforward/expert_products.py"
# Where a step of preferences computes in fp64: sums, losses, their copy to the card, and the
# backward pass of all.
SUMS_OF_ANSWERS = (
    "pion/data/sequences.py",
    "pion/data/stream.py",
    "pion/train/gradients.py",
    "pion/train/objective.py",
    "pion/train/preference_losses.py",
    "pion/train/reference.py",
)
# What else may be there: counts, places, ids, and the ids that a draft block guesses.
WHOLE_NUMBERS = (".positions", ".counts", "._given", "draft._buffers.ids")
# What a captured micro-batch reads.
WHOLE_NUMBERS += tuple(f"._static.0.{name}" for name in ("tokens", "targets", "documents"))
in_soak = functools.partial(pytest.param, marks=pytest.mark.soak)
BY_NAME = {str(rehearsal): rehearsal for rehearsal in REHEARSALS["all"]}


@pytest.fixture(scope="module", params=["suite", pytest.param("all", marks=pytest.mark.soak)])
def reports(request, on_pretended_card):
    reports = on_pretended_card("tests.cuda_rehearsal.rehearse", request.param)
    assert reports.keys() == {str(rehearsal) for rehearsal in REHEARSALS[request.param]}
    return reports


def counted(rehearsal):
    """Return the first word of the scenario's name, such as "train"."""
    return rehearsal.scenario.split()[0]


def passes(rehearsal):
    """Return how often one unit of the scenario passes through the layers."""
    again = "recompute" in rehearsal.scenario
    return PASSES[counted(rehearsal)] * (2 if again else 1)


def waits_in_layers(rehearsal):
    """Return how often one unit has to wait inside layers: to tell where experts' slices end."""
    config = MODELS[rehearsal.model]
    grouped = rehearsal.card == "H100" and rehearsal.scenario.endswith("bfloat16")
    if config.experts is None or grouped:
        return 0
    return config.n_layers * passes(rehearsal)


def trainings(reports, kinds=TRAIN):
    return {name: report for name, report in reports.items() if counted(BY_NAME[name]) in kinds}


def test_every_model_ends_every_scenario(reports):
    assert {name: report.error for name, report in reports.items() if report.error} == {}
    assert all(report.units > 0 for report in reports.values())


def test_the_host_waits_for_the_card_no_more_than_it_must(reports):
    too_many = {}
    for name, report in reports.items():
        waits = [wait for wait in report.of_kind("host_sync") if SLICES not in wait]
        if len(waits) > MOST_HOST_SYNCS[counted(BY_NAME[name])] * report.units:
            too_many[name] = waits
    assert too_many == {}


def test_experts_wait_once_a_layer_or_not_at_all_where_products_are_grouped(reports):
    waits = {
        name: sum(SLICES in wait for wait in report.of_kind("host_sync"))
        for name, report in reports.items()
    }
    expected = {
        name: waits_in_layers(BY_NAME[name]) * report.units for name, report in reports.items()
    }
    assert waits == expected
    assert expected["experts on A40: train adamw bfloat16"] == 2 * MICRO_BATCHES
    assert expected["experts on H100: train adamw bfloat16"] == 0


def test_no_operation_mixes_host_and_card(reports):
    mixed = {name: report.of_kind("wrong_device") for name, report in reports.items()}
    assert {name: found for name, found in mixed.items() if found} == {}


def test_no_operation_on_the_card_is_in_fp64_but_sums_of_answers(reports):
    double = {
        name: [found for found in report.of_kind("fp64") if not is_of_answers(name, found)]
        for name, report in reports.items()
    }
    assert {name: found for name, found in double.items() if found} == {}


def is_of_answers(name, found):
    """Return whether a finding is one of the few numbers that a step of preferences has in fp64."""
    return "train preference" in name and any(f" at {file}:" in found for file in SUMS_OF_ANSWERS)


def test_batches_of_training_are_copied_from_page_locked_memory(reports):
    found = trainings(reports, ("captured", *TRAIN))
    copies = {name: report.of_kind("unpinned_copy") for name, report in found.items()}
    assert {name: found for name, found in copies.items() if found} == {}


def test_weights_states_and_caches_are_on_the_card_in_fp32(reports):
    astray = {
        f"{name}: {tensor}": place
        for name, report in reports.items()
        for tensor, place in report.tensors.items()
        if not tensor.startswith(VIEWS)
        and place != f"cuda:0 torch.{'int64' if tensor.endswith(WHOLE_NUMBERS) else 'float32'}"
    }
    assert astray == {}


@pytest.mark.parametrize(
    ("scenario", "parts"),
    [
        ("train adamw bfloat16", ("embed._parameters.weight", "exp_avg", "exp_avg_sq", "steps")),
        in_soak("train muon bfloat16", ("exp_avg", "momentum")),
        ("evaluate text float32", ("embed._parameters.weight",)),
        in_soak("generate float32", ("layers.0.both",)),
        ("generate together float32", ("layers.0.both", "_joined")),
        ("replay float32", ("layers.0.both", "._given", "._results")),
        ("train draft bfloat16", ("draft._buffers.ids", "exp_avg")),
        ("captured bfloat16", ("embed._parameters.weight", "._static.0.tokens", "._gradients.0")),
    ],
)
def test_these_tensors_were_looked_at(reports, scenario, parts):
    looked_at = {str(Rehearsal(model, scenario)) for model in scenarios.MODELS} & reports.keys()
    assert looked_at or scenario not in IN_SUITE
    for name in looked_at:
        names = " ".join(reports[name].tensors)
        # Where the host has to wait for experts, no step is a graph.
        graph = counted(BY_NAME[name]) in ("replay", "captured")
        no_graph = graph and waits_in_layers(BY_NAME[name]) > 0
        expected = parts[:1] if no_graph else parts
        assert [part for part in expected if part not in names] == [], name


def test_matrix_products_of_training_have_the_dtype_of_the_plan(reports):
    """But a router multiplies in fp32: forward, and backward for its input and its weight. Those of
    the frozen model in front of a draft block have no backward pass."""
    others = {}
    for name, report in trainings(reports).items():
        counts = dict(report.matmuls)
        assert counts.pop(f"torch.{name.split()[-1]}") > 0
        others[name] = counts
    expected = {}
    for name in others:
        config, units = MODELS[BY_NAME[name].model], reports[name].units
        routed = config.experts is not None and name.endswith("bfloat16")
        backward = 0 if "draft" in name else 2 * MICRO_BATCHES
        products = config.n_layers * (passes(BY_NAME[name]) + backward) * units
        expected[name] = {"torch.float32": products} if routed else {}
    assert others == expected
