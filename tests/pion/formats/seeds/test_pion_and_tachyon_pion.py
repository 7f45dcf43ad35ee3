"""Pion's seed checkpoints are imported without running them, and compute what the seed computed.

The fixtures are checkpoints that the seed's trainer saved, including the pickled config, and the
results of the seed's code on them.
"""

from dataclasses import replace

import pytest
import torch

from pion.errors import BadInput
from pion.formats.seeds import import_seed
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from tests.paths import SEEDS
from tests.pion.formats.seeds.adamw_traces import four_steps, gradient_norms, losses_of
from tests.pion.formats.seeds.test_read import Attack
from tests.support.seed_files import read_seed, write_seed

NAMES = ("nocap", "softcap")


def checkpoint_of(name):
    return read_seed(SEEDS / f"pion_{name}_ckpt.pt")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def reference(name):
    return torch.load(SEEDS / f"pion_{name}_ref.pt", weights_only=True)


@pytest.fixture
def model(name):
    return import_seed(SEEDS / f"pion_{name}_ckpt.pt")


def test_settings_come_from_the_checkpoint(name, model):
    config = model.config
    assert (config.d_model, config.n_layers, config.d_ff) == (48, 3, 80)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (6, 2, 8)
    assert (config.vocab_size, config.seq_len) == (131, 64)
    assert config.softcap == (1.5 if name == "softcap" else None)


def test_logits_and_loss_are_the_seeds_own(model, reference):
    assert (model(reference["input_ids"]) - reference["train_logits"]).abs().max() <= 2e-5
    assert abs(losses_of(model, reference).ce - reference["train_loss"]) <= 1e-5


def test_without_its_cap_a_capped_model_is_what_the_seed_evaluated(reference, model):
    uncapped = Decoder.from_state(replace(model.config, softcap=None), model.state_dict())
    assert (uncapped(reference["input_ids"]) - reference["eval_logits"]).abs().max() <= 2e-5


def test_gradient_norms_are_the_seeds_own(model, reference):
    theirs = sorted(norm.item() for norm in reference["grad_norms"].values())
    assert gradient_norms(model, reference) == pytest.approx(theirs, rel=1e-3)


def test_four_steps_of_adamw_lose_what_the_seed_lost(model, reference):
    lost = [step.total for step in four_steps(model, reference)]
    assert lost == pytest.approx(reference["adamw_losses"].tolist(), abs=1e-4)


@torch.inference_mode()
def test_cached_decoding_is_the_seeds_token_by_token_decoding(model, reference):
    # The seed's cached calls never cap, and its multi-token prefill saw the future.
    uncapped = Decoder.from_state(replace(model.config, softcap=None), model.state_dict())
    ids = reference["input_ids"][:, :16]
    for split in ([1] * 16, [16], [5, 4, 7]):
        cache = KVCache(uncapped.config)
        logits = torch.cat([uncapped(part, cache=cache) for part in ids.split(split, 1)], dim=1)
        assert (logits - reference["stepwise16_logits"]).abs().max() <= 2e-5
        assert (logits - reference["seed_prefill16_logits_NONCAUSAL"]).abs().max() > 0.5


def saved(tmp_path, checkpoint):
    write_seed(checkpoint, tmp_path / "seed.pt")
    return tmp_path / "seed.pt"


def weights_of(model):
    return [parameter.detach() for parameter in model.parameters()]


def test_a_compiled_models_prefix_and_a_bf16_model_are_read(tmp_path):
    checkpoint = checkpoint_of("nocap")
    checkpoint["model"] = {
        f"_orig_mod.{key}": tensor.bfloat16() for key, tensor in checkpoint["model"].items()
    }
    model = import_seed(saved(tmp_path, checkpoint))
    original = import_seed(SEEDS / "pion_nocap_ckpt.pt")
    for ours, exact in zip(weights_of(model), weights_of(original), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact.bfloat16().float())


def test_a_fine_tuned_checkpoint_without_optimizer_is_read(tmp_path):
    checkpoint = checkpoint_of("nocap")
    fine_tuned = {key: checkpoint[key] for key in ("step", "model", "config")}
    assert import_seed(saved(tmp_path, fine_tuned)).config.softcap is None


def test_without_a_config_the_shape_comes_from_the_weights(tmp_path):
    config = import_seed(saved(tmp_path, checkpoint_of("softcap") | {"config": None})).config
    expected = import_seed(SEEDS / "pion_softcap_ckpt.pt").config
    assert config == replace(expected, softcap=None, seq_len=2048)


def test_a_config_older_than_the_softcap_switch_was_trained_with_it(tmp_path):
    checkpoint = checkpoint_of("softcap")
    del checkpoint["config"].use_soft_cap
    assert import_seed(saved(tmp_path, checkpoint)).config.softcap == 1.5


def test_a_command_inside_the_config_object_is_refused_too(tmp_path):
    victim = tmp_path / "pwned"
    checkpoint = checkpoint_of("nocap")
    checkpoint["config"].logit_cap = Attack(victim)
    with pytest.raises(BadInput, match="did not load the file"):
        import_seed(saved(tmp_path, checkpoint))
    assert not victim.exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"absent.pt: No such file"):
        import_seed(tmp_path / "absent.pt")
    with pytest.raises(BadInput, match="no tensors under 'model'"):
        import_seed(saved(tmp_path, {"state": {}}))
    with pytest.raises(BadInput, match="no tensors under 'model'"):
        import_seed(saved(tmp_path, [1, 2]))
