"""Tachyon's checkpoints compute what the seed computed: logits, losses, gradients and training."""

from dataclasses import replace

import pytest
import torch

from pion.config.parts import Experts
from pion.formats.seeds import import_seed
from pion.formats.seeds.pion_and_tachyon import TACHYON_NAMES
from pion.formats.seeds.read import renamed
from pion.model.decoder import Decoder
from tests.paths import SEEDS
from tests.pion.formats.seeds.adamw_traces import digest, four_steps, losses_of
from tests.support.seed_files import read_seed

NAMES = ("moe", "rows")


def reference_of(name):
    return torch.load(SEEDS / f"tachyon_{name}_ref.pt", weights_only=True)


def model_of(name):
    return import_seed(SEEDS / f"tachyon_{name}_ckpt.pt")


@pytest.mark.parametrize("name", NAMES)
def test_settings_come_from_the_checkpoint(name):
    reference, model = reference_of(name), model_of(name)
    theirs, experts = reference["config"], model.config.experts
    assert (experts.n, experts.top_k) == (theirs["n_routed_experts"], theirs["top_k_experts"])
    assert (experts.shared, experts.d_shared) == (theirs["n_shared_experts"], theirs["d_shared_ff"])
    assert (model.config.d_ff, model.config.seq_len) == (theirs["d_ff"], theirs["max_seq_len"])


def test_all_and_active_parameters_are_the_seeds_counts():
    reference, model = reference_of("moe"), model_of("moe")
    assert model.num_params() == reference["total_params"]
    assert model.num_params(active=True) == reference["active_params"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_losses_are_the_seeds_own(name):
    reference, model = reference_of(name), model_of(name)
    assert (model(reference["input_ids"]) - reference["logits"]).abs().max() <= 1e-5
    losses = losses_of(model, reference)
    assert abs(losses.ce - reference["ce_loss"]) <= 1e-5
    assert abs(losses.aux - reference["aux_loss"]) <= 1e-6


@pytest.mark.parametrize("kept", ["z", "balance"])
def test_each_layer_has_the_seeds_router_losses(kept):
    reference, seed = reference_of("rows"), model_of("rows")
    other = "balance_weight" if kept == "z" else "z_weight"
    config = replace(seed.config, experts=replace(seed.config.experts, **{other: 0.0}))
    model, found = Decoder.from_state(config, seed.state_dict()), []
    for block in model.blocks:
        block.feedforward.register_forward_hook(
            lambda _, given, result: found.append(result[1]["aux"] / len(given[0]))
        )
    losses_of(model, reference)
    expected = reference[f"{kept}_loss_per_layer"].float()
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-6)


def test_a_layer_routes_and_mixes_as_the_seeds_does():
    reference = reference_of("rows")
    experts = model_of("rows").blocks[1].feedforward
    given = reference["moe_input_layer1"]
    result, _ = experts(given)
    logits = given.flatten(0, 1) @ experts.router.T
    assert (logits - reference["router_logits_layer1"]).abs().max() <= 1e-5
    assert torch.equal(logits.topk(2, dim=-1).indices, reference["router_topk_layer1"])
    assert (result - reference["moe_output_layer1"]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("part", "key"), [("all", "param_grad_norm"), ("aux", "param_grad_norm_aux_only")]
)
def test_each_tensors_gradient_has_the_seeds_norm(part, key):
    reference, model = reference_of("rows"), model_of("rows")
    losses = losses_of(model, reference)
    (losses.aux if part == "aux" else losses.ce + losses.aux).backward()
    found = dict(model.named_parameters())
    for name, theirs in zip(our_names(reference), reference[key].tolist(), strict=True):
        grad = found[name].grad
        ours = 0.0 if grad is None else grad.norm().item()
        assert ours == pytest.approx(0.0 if theirs != theirs else theirs, rel=1e-4, abs=1e-8), name


def test_by_row_each_row_has_the_loss_that_it_has_alone():
    reference, seed = reference_of("rows"), model_of("rows")
    config = replace(seed.config, experts=replace(seed.config.experts, balance="row"))
    model = Decoder.from_state(config, seed.state_dict())
    z, balance = reference["z_loss_per_row_and_layer"], reference["balance_loss_per_row_and_layer"]
    aux = losses_of(model, reference).aux * len(reference["input_ids"])
    assert aux.item() == pytest.approx((z + balance).sum().item(), abs=1e-5)


def test_each_layer_reports_the_load_that_the_seed_counted():
    reference = reference_of("rows")
    stats = losses_of(model_of("rows"), reference).stats
    counts = reference["expert_counts_per_layer"]
    torch.testing.assert_close(stats["load"], counts / counts.sum(dim=1, keepdim=True))


def test_four_steps_of_adamw_repeat_the_seeds_losses_norms_and_weights():
    reference, model = reference_of("rows"), model_of("rows")
    names = our_names(reference)

    def recorded():
        weights = model.state_dict()
        return torch.stack([digest(weights[name]) for name in names])

    digests, losses = reference["adamw_param_digest"], reference["adamw_losses_total_aux"]
    assert (recorded() - digests[0]).abs().max() <= 1e-4
    for number, step in enumerate(four_steps(model, reference)):
        assert step[:2] == pytest.approx(losses[number].tolist(), abs=1e-5)
        assert step.grad_norm == pytest.approx(reference["adamw_clip_total_norm"][number], rel=1e-4)
        assert (recorded() - digests[number + 1]).abs().max() <= 1e-4


def our_names(reference):
    """Return our names of the seed's tensors, in the order of the reference."""
    marks = {name: torch.tensor(n) for n, name in enumerate(reference["param_names"])}
    ours = {int(mark): name for name, mark in renamed(marks, TACHYON_NAMES, "Tachyon").items()}
    return [ours[n] for n in range(len(ours))]


def checkpoint():
    return {"model": read_seed(SEEDS / "tachyon_moe_ckpt.pt")["model"]}  # without a config


def test_a_head_that_repeats_the_embedding_is_read_once(tmp_path):
    tensors = checkpoint()["model"]
    tensors["lm_head.weight"] = tensors["embed.weight"].clone()
    torch.save({"model": tensors}, tmp_path / "seed.pt")
    state = import_seed(tmp_path / "seed.pt").state_dict()
    assert "lm_head.weight" not in state
    assert torch.equal(state["embed.weight"], tensors["embed.weight"])


def test_a_compiled_run_without_a_config_is_read(tmp_path):
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in checkpoint()["model"].items()}
    torch.save({"model": tensors}, tmp_path / "seed.pt")
    config = import_seed(tmp_path / "seed.pt").config
    assert config.experts == Experts(n=5, top_k=2, shared=2, d_shared=40, balance="batch")
    assert config.seq_len == 2048
