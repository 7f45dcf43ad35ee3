"""Tachyon's checkpoints compute what the seed computed: logits, losses, gradients and training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pion.errors import BadInput
from pion.model.cache import KVCache
from pion.model.decoder import Decoder, Losses
from pion.parts import Experts
from pion.seeds import import_seed
from pion.seeds.read import STUBS
from tests.paths import SEEDS

NAMES = ("moe", "rows")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reference(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(SEEDS / f"tachyon_{name}_ref.pt", weights_only=True)
    return loaded


@pytest.fixture
def model(name: str) -> Decoder:
    return import_seed(SEEDS / f"tachyon_{name}_ckpt.pt")


def shifted(labels: Tensor) -> Tensor:
    targets = labels.roll(-1, dims=1)
    targets[:, -1] = -100
    return targets


def losses_of(model: Decoder, reference: dict[str, Any]) -> Losses:
    """Return the losses as the seed has them: means over targets and over rows."""
    targets = shifted(reference["labels"])
    losses = model.losses(reference["input_ids"], targets)
    counted, rows = (targets != -100).sum(), len(targets)
    return losses._replace(ce=losses.ce / counted, aux=losses.aux / rows)


def test_settings_come_from_the_checkpoint(model: Decoder, reference: dict[str, Any]) -> None:
    theirs, experts = reference["config"], model.config.experts
    assert experts is not None
    assert (experts.n, experts.top_k) == (theirs["n_routed_experts"], theirs["top_k_experts"])
    assert (experts.shared, experts.d_shared) == (
        theirs["n_shared_experts"],
        theirs["d_shared_ff"],
    )
    assert (model.config.d_ff, model.config.seq_len) == (theirs["d_ff"], theirs["max_seq_len"])


def test_all_and_active_parameters_are_the_seeds_counts() -> None:
    reference = torch.load(SEEDS / "tachyon_moe_ref.pt", weights_only=True)
    model = import_seed(SEEDS / "tachyon_moe_ckpt.pt")
    assert model.num_params() == reference["total_params"]
    assert model.num_params(active=True) == reference["active_params"]


def test_logits_and_losses_are_the_seeds_own(model: Decoder, reference: dict[str, Any]) -> None:
    logits = model(reference["input_ids"])
    assert (logits - reference["logits"]).abs().max() <= 2e-5
    losses = losses_of(model, reference)
    assert abs(losses.ce - reference["ce_loss"]) <= 1e-5
    assert abs(losses.aux - reference["aux_loss"]) <= 1e-6


def test_gradient_norms_are_the_seeds_own() -> None:
    reference = torch.load(SEEDS / "tachyon_moe_ref.pt", weights_only=True)
    model = import_seed(SEEDS / "tachyon_moe_ckpt.pt")
    losses = losses_of(model, reference)
    (losses.ce + losses.aux).backward()
    ours = sorted(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
    theirs = sorted(norm.item() for norm in reference["grad_norms"].values())
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_by_row_each_row_has_the_loss_that_it_has_alone() -> None:
    reference = torch.load(SEEDS / "tachyon_rows_ref.pt", weights_only=True)
    seed = import_seed(SEEDS / "tachyon_rows_ckpt.pt")
    assert seed.config.experts is not None
    config = replace(seed.config, experts=replace(seed.config.experts, balance="row"))
    model = Decoder.from_state(config, seed.state_dict())
    z, balance = reference["z_loss_per_row_and_layer"], reference["balance_loss_per_row_and_layer"]
    losses = model.losses(reference["input_ids"], shifted(reference["labels"]))
    assert losses.aux.item() == pytest.approx((z + balance).sum().item(), abs=1e-5)


def test_each_layer_reports_the_load_that_the_seed_counted() -> None:
    reference = torch.load(SEEDS / "tachyon_rows_ref.pt", weights_only=True)
    model = import_seed(SEEDS / "tachyon_rows_ckpt.pt")
    stats = losses_of(model, reference).stats
    counts = reference["expert_counts_per_layer"]
    torch.testing.assert_close(stats["load"], counts / counts.sum(dim=1, keepdim=True))


def test_four_steps_of_adamw_lose_what_the_seed_lost() -> None:
    reference = torch.load(SEEDS / "tachyon_moe_ref.pt", weights_only=True)
    model = import_seed(SEEDS / "tachyon_moe_ckpt.pt")
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    kept = [p for name, p in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    lost = []
    for _ in range(4):
        losses = losses_of(model, reference)
        total = losses.ce + losses.aux
        lost.append(total.item())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert lost == pytest.approx(reference["adamw_losses"].tolist(), abs=1e-4)


@torch.inference_mode()
def test_cached_decoding_is_the_full_forward_for_any_split(model: Decoder) -> None:
    ids = torch.arange(16)[None]
    whole = model(ids)
    for split in ([1] * 16, [16], [5, 4, 7]):
        cache = KVCache(model.config)
        logits = torch.cat([model(part, cache=cache) for part in ids.split(split, 1)], dim=1)
        assert (logits - whole).abs().max() <= 1e-4


def checkpoint() -> dict[str, Any]:
    with torch.serialization.safe_globals(list(STUBS)):
        path = SEEDS / "tachyon_moe_ckpt.pt"
        loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return {"model": loaded["model"]}  # without a config


def test_a_compiled_run_without_a_config_is_read(tmp_path: Path) -> None:
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in checkpoint()["model"].items()}
    torch.save({"model": tensors}, tmp_path / "seed.pt")
    config = import_seed(tmp_path / "seed.pt").config
    assert config.experts == Experts(n=5, top_k=2, shared=2, d_shared=40, balance="batch")
    assert config.seq_len == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.moe.w1": None}, "no layers.0.moe.w1 of shape"),
        ({"layers.1.moe.w2": None}, "the weights have no blocks.1.feedforward.down_proj"),
        ({"layers.1.moe.bias": torch.zeros(1)}, "unexpected tensor layers.1.moe.bias"),
        ({"tok_emb.weight": torch.zeros(1)}, "this is a Lepton. A Lepton's forward pass saw"),
        ({"primitive_banks.fc1_banks.early.A": torch.zeros(1)}, "a PILON, which Pion can't import"),
    ],
)
def test_other_layouts_are_refused_with_the_tensor_and_the_reason(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = checkpoint()["model"] | change
    torch.save({"model": {k: v for k, v in tensors.items() if v is not None}}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match=message):
        import_seed(tmp_path / "x.pt")
