"""PILON's checkpoints compute what the seed computed: logits, losses, gradients and training."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pion.formats.seeds import import_seed
from pion.model.decoder import Decoder
from tests.paths import SEEDS
from tests.pion.formats.seeds.adamw_traces import digest
from tests.pion.formats.seeds.pilon_traces import GRAD_ACCUM, seed_tensors, steps_of

# By the trace: its start, the bounds of losses, weights and norms, and changes of the settings.
TRACES = {
    "comp": ("comp", 1e-5, 1e-4, 1e-4, {"diversity_weight": 0.01}),
    "comp_default": ("comp", 1e-5, 1e-4, 1e-4, {}),
    "ternary_noact": (
        "ternary",
        1e-5,
        1e-4,
        1e-4,
        {"diversity_weight": 0.01, "activation_bits": 0},
    ),
    "ternary": ("ternary", 1e-3, 1e-2, 0.1, {"diversity_weight": 0.01}),
}
# Of the trace without the recipe's flags: between its phases, k falls from 8 to 3.
FALLING = [3] * 5 + [round(8 - 5 * (step - 4) / 6) for step in range(5, 10)] + [3] * 10


def model_of(name):
    return import_seed(SEEDS / f"pilon_{name}_ckpt.pt")


def reference_of(name):
    return torch.load(SEEDS / f"pilon_{name}_ref.pt", weights_only=True)


def changed(model, **fields):
    primitives = replace(model.config.primitives, **fields)
    return Decoder.from_state(replace(model.config, primitives=primitives), model.state_dict())


def test_settings_come_from_tensors_and_config():
    config = model_of("ternary").config
    assert (config.d_model, config.n_layers, config.n_heads, config.d_ff) == (32, 4, 4, 64)
    assert (config.vocab_size, config.seq_len, config.positions) == (131, 64, "learned")
    assert config.activation == "relu2"
    assert (config.primitives.n, config.primitives.rank, config.primitives.top_k) == (8, 6, 3)
    assert config.primitives.bands == ((0, 1), (2, 3))
    assert config.primitives.ternary
    assert config.primitives.sub_norm
    assert config.primitives.activation_bits == 8


@pytest.mark.parametrize("name", ["dense", "comp", "comp_bias", "tiered", "ternary", "moe"])
def test_logits_are_the_seeds_own_also_where_primitives_are_mixed_once_for_generation(name):
    reference, model = reference_of(name), model_of(name)
    with torch.no_grad():
        for each in (model, model.joined()):
            assert (each(reference["input_ids"]) - reference["logits"]).abs().max() <= 2e-5


def test_logits_without_rounded_activations_are_the_seeds_own():
    reference = reference_of("ternary_noact")
    logits = changed(model_of("ternary"), activation_bits=0)(reference["input_ids"])
    assert (logits - reference["logits"]).abs().max() <= 2e-5


def test_a_scale_over_the_bank_gives_the_logits_of_the_seeds_trainer():
    reference = reference_of("ternary")
    logits = changed(model_of("ternary"), ternary_scale="bank")(reference["input_ids"])
    assert (logits - reference["logits_trainer_qcache"]).abs().max() <= 1e-3


def test_routed_recipes_have_the_seeds_losses_and_gradients():
    reference, model = reference_of("moe"), model_of("moe")
    assert (model.config.experts.n, model.config.experts.top_k) == (4, 2)
    tokens, labels = reference["input_ids"], reference["labels"]
    ce = model.losses(tokens[:, :-1], labels[:, 1:]).ce / (labels[:, 1:] != -100).sum()
    assert ce.item() == pytest.approx(reference["loss"].item(), abs=1e-5)
    # Ours is weighted and summed over rows. The seed reports one loss of all tokens.
    aux = model.losses(tokens, labels).aux / len(tokens)
    assert aux.item() == pytest.approx(0.01 * reference["aux_loss"].item(), abs=1e-6)
    ce.backward()
    for layer, block in enumerate(model.blocks):
        routed = block.feedforward
        recipes = torch.stack([recipe.up_recipe.grad for recipe in routed.recipes])
        for name, gradient in (
            ("router.router.weight", routed.router.grad),
            ("expert_compositions.fc1_logits", recipes),
        ):
            expected = reference["grad_norms"][f"layers.{layer}.ffn.{name}"].item()
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-3)


# Of the checkpoints with gates: the reference's names of a threshold (or 0.5) and of its logits.
SKIPS = [
    ("exit", None, "logits"),
    ("gates", None, "eval_logits_thr05"),
    ("gates", "alt_threshold", "eval_logits_alt"),
]


@pytest.mark.parametrize(("name", "above", "logits"), SKIPS)
def test_gates_skip_what_the_seeds_skip(name, above, logits):
    reference, model = reference_of(name), model_of(name)
    threshold = 0.5 if above is None else reference[above]
    skipped = []

    def count(_, seen, gate):
        skipped.append(int((gate.sigmoid() > threshold).sum()))

    model = model.with_gates(threshold)
    for block in model.blocks:
        block.gate.register_forward_hook(count)
    with torch.no_grad():
        found = model(reference["input_ids"][:2])
    assert (found - reference[logits]).abs().max() <= 1e-5
    if above is not None:
        assert skipped == reference["skips_per_layer_alt"]
    else:
        assert sum(skipped) == reference.get("skip_total", 0)


def test_gates_train_as_the_seeds_do():
    """The seed's three epochs: the losses of each batch and layer, and the gates at the end."""
    reference, trunk = reference_of("gates"), model_of("trace_comp_final")
    config = replace(trunk.config, gates=True)
    new = {name: t for name, t in Decoder(config).state_dict().items() if ".gate." in name}
    model = Decoder.from_state(config, trunk.state_dict() | new)
    gates = {name: gate for name, gate in model.named_parameters() if ".gate." in name}
    optimizer = torch.optim.Adam(gates.values(), lr=reference["lr"])
    batches = reference["input_ids"].split(reference["batch_size"])
    for expected in reference["bce_per_batch_and_layer"].tolist():
        for tokens, of_layers in zip(batches, expected, strict=True):
            losses = model.losses(tokens, tokens)
            assert losses.stats["gate_loss"].tolist() == pytest.approx(of_layers, abs=1e-5)
            optimizer.zero_grad()
            (losses.aux / len(tokens)).backward()
            optimizer.step()
    for theirs, gate in reference["gates"].items():
        layer, name = theirs.split(".")[1], theirs.split(".")[-1]
        assert (gates[f"blocks.{layer}.gate.{name}"] - gate).abs().max() <= 1e-6


def test_a_fine_tuned_model_has_the_seeds_larger_vocabulary_and_logits():
    reference, model = reference_of("sft"), model_of("sft")
    assert model.config.vocab_size == 133
    tokens = reference["input_ids"][0][:, : reference["batch_lengths"][0]]
    assert model_of("trace_comp_final").config.vocab_size == 131
    assert (model(tokens) - reference["eval_logits_batch0_nomask"]).abs().max() <= 1e-5


def replayed(name):
    start, _, _, _, fields = TRACES[name]
    trace = reference_of(f"trace_{name}")
    model = changed(model_of(f"trace_{start}_init"), **fields)
    return enumerate(steps_of(model, trace, FALLING if name == "comp_default" else [3] * 20))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("comp", "ternary") else pytest.param(name, marks=pytest.mark.soak)
        for name in TRACES
    ],
)
def test_training_repeats_the_seeds_trace(name):
    trace = reference_of(f"trace_{name}")
    _, most_loss, most_digest, most_norm, _ = TRACES[name]
    for step, found in replayed(name):
        expected = trace["micro_losses"][step].tolist()
        assert len(found.losses) == GRAD_ACCUM
        assert found.losses == pytest.approx(expected, abs=most_loss)
        norm = trace["clip_total_norm"][step].item()
        assert found.clip_norm == pytest.approx(norm, rel=most_norm)
        for number, tensor in enumerate(trace["param_names"]):
            apart = digest(found.weights[tensor]) - trace["param_digest"][step + 1, number]
            assert apart.abs().max() <= most_digest, (step, tensor)
    assert step == 19


def test_fine_tuning_repeats_the_seeds_steps():
    """The seed's sft.py: padded batches, plain AdamW with the same decay for all groups."""
    trace, start = reference_of("sft"), model_of("trace_comp_final")
    state = start.state_dict()
    state["embed.weight"] = torch.cat([state["embed.weight"], trace["resized_new_rows"]])
    model = Decoder.from_state(replace(start.config, vocab_size=133), state)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.01)
    for step, lr in enumerate(trace["lr"]):
        tokens = trace["input_ids"][step][:, : trace["batch_lengths"][step]]
        labels = trace["shifted_labels"][step]
        logits = model(tokens)[:, : labels.shape[1]]
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        assert loss.item() == pytest.approx(trace["losses"][step].item(), abs=1e-5)
        assert norm.item() == pytest.approx(trace["clip_total_norm"][step].item(), rel=1e-5)
        weights = seed_tensors(model)
        for number, tensor in enumerate(trace["param_names"]):
            apart = digest(weights[tensor]) - trace["param_digest"][step + 1, number]
            assert apart.abs().max() <= 1e-4, (step, tensor)
    assert step == 19
