"""Repeat a training run of the Daisy-Wee seed: its rates, windows and momentum, our optimizer."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pion.formats.seeds.daisy import turned
from pion.model.forward_pass import StepOptions
from pion.train.optimizer.optimizer import Optimizer
from pion.train.schedule import StepPlan
from pion.train.settings import TrainSettings

END_OF_TEXT = 128
GROUPS = {
    "head_params": "head",
    "embed_params": "embedding",
    "scalar_params": "vector",
    "hidden_matrix_params": "matrix",
}


@dataclass(frozen=True)
class Step:
    """What a step gave: its loss, and by the seed's names the gradient norms and new weights."""

    loss: float
    grad_norms: dict[str, float]
    weights: dict[str, Tensor]


def documents_of(tokens):
    """Return the number of each token's document: an end-of-text begins the next one."""
    return (tokens == END_OF_TEXT).cumsum(dim=-1)


def of_window(model, tokens):
    """Return the options of a step whose long window is so many tokens."""
    return StepOptions({"windows": replace(model.config.windows, tokens=tokens)})


def steps_of(
    model, tokens, trace, *, seq_len, grad_accum=1, betas=(0.9, 0.95), newton_schulz=torch.float32
):
    """Train as the trace says, one step at a time."""
    settings = TrainSettings(
        steps=len(trace["step_losses"]),
        global_batch=grad_accum,
        lr=1.0,
        optimizer="muon",
        beta1=betas[0],
        beta2=betas[1],
        eps=1e-10,
        weight_decay=0.0,
    )
    optimizer = Optimizer(model, settings, newton_schulz)
    for step, rates in enumerate(trace["group_lr"].tolist()):
        by_role = {GROUPS[name]: lr for name, lr in zip(trace["group_names"], rates, strict=True)}
        window = 128 * trace["window_blocks"][step]
        total = torch.zeros(())
        for micro_batch in range(grad_accum):
            start = (step * grad_accum + micro_batch) * seq_len
            row = tokens[start : start + seq_len + 1][None]
            ids, targets = row[:, :-1], row[:, 1:]
            losses = model.losses(
                ids, targets, documents=documents_of(ids), options=of_window(model, window)
            )
            loss = losses.ce / (seq_len * grad_accum)
            loss.backward()
            total += loss.detach()
        gradients = seed_tensors(
            model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
        optimizer.step(StepPlan(1.0, by_role | {"router": 0.0}, trace["momentum"][step]))
        optimizer.zero_grad()
        weights = seed_tensors(model, dict(model.named_parameters()))
        norms = {name: grad.double().norm().item() for name, grad in gradients.items()}
        yield Step(total.item(), norms, weights)


def seed_tensors(model, tensors):
    """Return tensors with our parameters' names as the seed's, which packs and turns some."""
    config = model.config
    scalars = ("wiring.gates", "wiring.mix", "values.mix")
    packed = {
        "scalars": torch.cat([tensors[name].flatten() for name in scalars]),
        "lm_head_w": tensors["embed.weight" if config.tie_embeddings else "lm_head.weight"],
        "embed.weight": tensors["embed.weight"],
    }
    for layer, table in config.values.table_of().items():
        packed.setdefault(f"value_embeds.{layer}.weight", tensors[f"values.tables.{table}.weight"])
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"blocks.{layer}"
        if f"{ours}.attention.q_proj.weight" in tensors:
            q, k, v, o = (tensors[f"{ours}.attention.{part}_proj.weight"] for part in "qkvo")
            q, k = turned(q, config.head_dim), turned(k, config.head_dim)
            packed[f"{theirs}.attn.qkvo_w"] = torch.stack((q, k, v, o))
        packed[f"{theirs}.mlp.fc_w"] = tensors[f"{ours}.feedforward.up_proj.weight"]
        packed[f"{theirs}.mlp.proj_w"] = tensors[f"{ours}.feedforward.down_proj.weight"]
    return packed
