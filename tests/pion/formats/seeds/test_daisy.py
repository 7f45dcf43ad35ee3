"""Daisy-Wee's checkpoints compute what the seed computed: logits, losses, gradients and training.

Where Muon moves a matrix, the sums by which the seed's trace records it are about 300 at the end.
"""

from dataclasses import replace

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Windows
from pion.formats.seeds import import_seed
from pion.formats.seeds.daisy import from_daisy
from pion.formats.seeds.read import SeedCheckpoint
from pion.model.decoder import Decoder
from pion.model.loss import Cap, cap_logits
from tests.paths import SEEDS
from tests.pion.formats.seeds.adamw_traces import digest
from tests.pion.formats.seeds.daisy_traces import documents_of, of_window, seed_tensors, steps_of

CHECKPOINTS = {
    "daisy": "daisy_ckpt",
    "trace": "daisy_trace_init_ckpt",
    "tied": "daisy_tied_init_ckpt",
    "old": "daisy_old_ckpt",
}


def model_of(name):
    return import_seed(SEEDS / f"{CHECKPOINTS[name]}.pt")


def reference_of(name):
    return torch.load(SEEDS / f"daisy_{name}ref.pt", weights_only=True)


def test_settings_come_from_tensors_and_hparams():
    config = model_of("daisy").config
    assert (config.d_model, config.n_layers, config.n_heads, config.d_ff) == (32, 8, 2, 128)
    assert (config.vocab_size, config.head_rows, config.seq_len) == (131, 256, 512)
    assert config.windows.tokens == 256
    assert config.wiring.attention_layers == (0, 2, 4, 5, 7)
    assert config.wiring.skips == ((5, 3), (6, 2))
    assert config.values.layers == (0, 2, 5, 7)


def test_the_readmes_vintage_has_attention_everywhere_and_shares_value_tables():
    config, reference = model_of("old").config, reference_of("old_")
    assert config.wiring.attention_layers is None
    assert dict(config.wiring.skips) == reference["skip_map"]
    assert not config.values.normed
    tables = [config.values.table_of().get(layer) for layer in range(config.n_layers)]
    assert tables == reference["ve_tables_by_layer"]


def test_logits_and_the_loss_without_windows_are_the_seeds_own():
    reference, seed = reference_of(""), model_of("daisy")
    model = Decoder.from_state(replace(seed.config, windows=None), seed.state_dict())
    ids, targets = reference["input_ids"].long()[None], reference["targets"][None]
    loss = model.loss(ids, targets)
    assert abs(loss - reference["loss_fp32_fullcausal"]) <= 1e-5
    capped = cap_logits(model.hidden(ids)[0, ::8] @ model.lm_head.weight.T, Cap(15.0))
    assert (capped - reference["capped_logits_fp32_fullcausal"]).abs().max() <= 1e-5
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = {name: g.norm().item() for name, g in seed_tensors(model, gradients).items()}
    theirs = {name: norm.item() for name, norm in reference["grad_norms_fp32"].items()}
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_logits_of_any_id_are_below_the_cap_and_the_head_has_no_ids_beyond_the_vocabulary():
    reference, model = reference_of(""), model_of("daisy")
    logits = model(reference["prefill_ids"])[0, -1]
    expected = cap_logits(reference["prefill64_last_logits_UNCAPPED"][0, :131], Cap(15.0))
    assert logits.shape == (131,)
    assert (logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "file", "blocks", "key"),
    [
        ("old", "old_", 2, "w2"),
        ("old", "old_", 5, "w5"),
        ("old", "old_", 8, "w8"),
        ("daisy", "", 3, "windowed_w3"),
    ],
)
def test_losses_through_windows_and_within_documents_are_the_seeds_own(name, file, blocks, key):
    reference, model = reference_of(file), model_of(name)
    ids, targets = reference["input_ids"].long()[None], reference["targets"][None]
    losses = model.losses(
        ids, targets, documents=documents_of(ids), options=of_window(model, 128 * blocks)
    )
    assert abs(losses.ce / ids.numel() - reference[f"loss_fp32_{key}"]) <= 1e-5


def test_evaluation_through_a_window_has_the_seeds_logits_and_loss():
    reference, seed = reference_of("old_"), model_of("old")
    windows = Windows(tokens=128 * 5)
    model = Decoder.from_state(replace(seed.config, windows=windows), seed.state_dict()).eval()
    ids, targets = reference["input_ids"].long()[None], reference["targets"][None]
    hidden = model.hidden(ids, documents=documents_of(ids))
    logits = cap_logits(hidden[0, ::16] @ model.lm_head.weight.T, Cap(15.0))
    assert (logits - reference["capped_logits_fp32_w5_rows_0_16_32"]).abs().max() <= 1e-4
    loss = model.loss(ids, targets, documents=documents_of(ids))
    assert abs(loss - reference["eval_loss_fp32_w5_mean_of_4_chunks"]) <= 1e-5


@pytest.mark.parametrize("name", ["trace", "tied"])
def test_a_trace_begins_with_the_seeds_logits(name):
    file, key, seq_len, _, _ = TRACES[name]
    reference, seed = reference_of(file), model_of(name)
    trace = reference[key.format("fp32")]
    windows = Windows(tokens=128 * int(trace["window_blocks"][0]))
    model = Decoder.from_state(replace(seed.config, windows=windows), seed.state_dict())
    ids = reference["tokens"][:seq_len].long()[None]
    hidden = model.hidden(ids, documents=documents_of(ids))
    head = model.embed.weight if model.config.tie_embeddings else model.lm_head.weight
    logits = cap_logits(hidden[0, ::32] @ head.T, Cap(15.0))
    expected = trace["capped_logits_step0_rows_0_32_64"]
    assert (logits - expected[:, : logits.shape[1]]).abs().max() <= 1e-4


# Of a trace: reference file, key, tokens a row, micro-batches a step, and AdamW's betas.
TRACES = {
    "trace": ("trace_", "{}", 1280, 1, (0.9, 0.95)),
    "tied": ("tied_", "{}", 1024, 2, (0.8, 0.95)),
    "old": ("old_", "trace_{}", 1024, 1, (0.9, 0.95)),
}
# Of a mode: the dtype of Newton-Schulz, and bounds of the loss, of relative gradient norms, and of
# the recorded sums of the weights.
MODES = {
    "fp32": (torch.float32, 1e-5, 1e-4, 5e-3),
    "fp32_nsbf16": (torch.bfloat16, 5e-4, 1e-2, 1.0),
}


IN_SUITE = (("tied", "fp32_nsbf16"), ("old", "fp32"))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=() if (name, mode) in IN_SUITE else pytest.mark.soak)
        for name in TRACES
        for mode in MODES
    ],
)
def test_training_repeats_the_seeds_losses_gradients_and_weights(name, mode):
    file, key, seq_len, grad_accum, betas = TRACES[name]
    dtype, loss_bound, norm_bound, digest_bound = MODES[mode]
    reference, model = reference_of(file), model_of(name)
    trace = reference[key.format(mode)]
    names = trace["param_names"]
    steps = steps_of(
        model,
        reference["tokens"],
        trace,
        seq_len=seq_len,
        grad_accum=grad_accum,
        betas=betas,
        newton_schulz=dtype,
    )
    for number, step in enumerate(steps):
        assert abs(step.loss - trace["step_losses"][number]) <= loss_bound
        norms = [step.grad_norms[name] for name in names]
        assert norms == pytest.approx(trace["param_grad_norm"][number].tolist(), rel=norm_bound)
        digests = torch.stack([digest(step.weights[name]) for name in names])
        assert (digests - trace["param_digest"][number + 1]).abs().max() <= digest_bound


def checkpoint(name="daisy_ckpt"):
    return torch.load(SEEDS / f"{name}.pt", weights_only=True)


def test_a_compiled_tied_run_that_saved_the_embedding_twice_is_read(tmp_path):
    file = checkpoint(CHECKPOINTS["tied"])
    file["model"]["embed.weight"] = file["model"]["lm_head_w"].clone()
    file["model"] = {f"_orig_mod.{name}": tensor for name, tensor in file["model"].items()}
    torch.save(file, tmp_path / "seed.pt")
    expected = model_of("tied").state_dict()
    for name, tensor in import_seed(tmp_path / "seed.pt").state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("name", ["daisy-pico", "daisy-pico-tied", "daisy-1.6b-sparse"])
def test_without_hparams_a_published_model_is_recognized_by_its_widths(name):
    preset = ModelConfig.preset(name)
    d_model, layers = preset.d_model, range(preset.n_layers)
    shapes = {"scalars": (5 * preset.n_layers,)}
    shapes["lm_head_w"] = (preset.head_rows, d_model)
    if not preset.tie_embeddings:
        shapes["embed.weight"] = (preset.vocab_size, d_model)
    shapes |= {f"blocks.{n}.mlp.fc_w": (preset.d_ff, d_model) for n in layers}
    shapes |= {f"blocks.{n}.mlp.proj_w": (d_model, preset.d_ff) for n in layers}
    attention = preset.wiring.attention_layers or layers
    shapes |= {f"blocks.{n}.attn.qkvo_w": (4, d_model, d_model) for n in attention}
    shapes |= {
        f"value_embeds.{n}.weight": (preset.vocab_size, d_model) for n in preset.values.layers
    }
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    config, state = from_daisy(SeedCheckpoint(tensors, None))
    assert config == preset
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Decoder(preset).state_dict().items()}
    assert {name: tensor.shape for name, tensor in state.items()} == expected
