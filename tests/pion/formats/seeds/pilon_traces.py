"""Repeat a training run of the PILON seed: its rates and its quirks, our model and optimizer."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args
from unittest import mock

import torch
from torch import Tensor, nn

from pion.config.parts import Role
from pion.model.forward_pass import StepOptions
from pion.model.parameters import parameter_roles
from pion.model.pilon import layers as composed
from pion.model.pilon.primitive_banks import Bank, Recipe, recipe_of
from pion.train.optimizer.optimizer import Optimizer
from pion.train.schedule import StepPlan
from pion.train.settings import TrainSettings

GRAD_ACCUM = 2
# Which of the seed's groups has the rate of a role.
GROUPS = {"primitive": "primitives", "recipe": "composition"}
MATRICES = {"up": "fc1", "down": "fc2"}


@dataclass(frozen=True)
class Step:
    """What a step gave: the losses of its micro-batches, the gradients' norm, the new weights."""

    losses: list[float]
    clip_norm: float
    weights: dict[str, Tensor]


def _of_top_k(model, top_k):
    return StepOptions({"primitives": replace(model.config.primitives, top_k=top_k)})


def steps_of(model, trace, top_k):
    """Train as the trace says, one step at a time; `top_k` is that of each step."""
    settings = TrainSettings(len(top_k), GRAD_ACCUM * 2, lr=1.0, weight_decay=0.1)
    optimizer = Optimizer(model, settings)
    frozen_before = False
    for step, rates in enumerate(trace["group_lr"].tolist()):
        by_group = dict(zip(trace["group_names"], rates, strict=True))
        later = trace["phase_of_step"][step] > 1
        frozen = later and by_group["primitives"] == 0
        # The seed trains with a ternary scale over the bank, until its factors are cached.
        _scale_over(model, "chosen" if frozen and frozen_before else "bank")
        losses = []
        for micro_batch in range(GRAD_ACCUM):
            ids = trace["input_ids"][GRAD_ACCUM * step + micro_batch]
            tokens, targets = ids[:, :-1], ids[:, 1:]
            with _cached_choices(trace, step):
                result = model.losses(tokens, targets, options=_of_top_k(model, top_k[step]))
            loss = result.ce / targets.numel()
            losses.append(loss.item())
            if later:
                loss = loss + result.aux / len(tokens)
            (loss / GRAD_ACCUM).backward()
        if frozen and frozen_before:
            # Then the factors have no gradient. The other tensors of a bank have one, which counts
            # in the norm and in the moments.
            for name, param in model.named_parameters():
                if name.endswith(".factors"):
                    param.grad = torch.zeros_like(param)
        frozen_before = frozen
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        _decay_vectors(model, by_group["base"] * settings.weight_decay)
        roles = get_args(Role)
        plan = StepPlan(1.0, {role: by_group[GROUPS.get(role, "base")] for role in roles}, 0.0)
        optimizer.step(plan)
        optimizer.zero_grad()
        yield Step(losses, float(norm), seed_tensors(model))


@contextmanager
def _cached_choices(trace, step):
    """Let layers choose the primitives that the seed had chosen up to ten steps before."""
    cached = zip(trace["topk_cache_fc1"][step], trace["topk_cache_fc2"][step], strict=True)
    choices = iter([choice for layer in cached for choice in layer])

    def recipe(logits, top_k):
        # The report of the recipes asks again, after all layers.
        choice = torch.tensor(next(choices, ()), dtype=torch.int64)
        if len(choice) != top_k:  # the seed then chooses again
            return recipe_of(logits, top_k)
        weights = logits.softmax(dim=0)[choice]
        return Recipe(choice, weights / weights.sum())

    with mock.patch.object(composed, "recipe_of", recipe):
        yield


def _scale_over(model, what):
    for part in model.modules():
        if isinstance(part, Bank):
            part.settings = replace(part.settings, ternary_scale=what)


@torch.no_grad()
def _decay_vectors(model, share):
    """Shrink the vectors: the seed decays everything but banks and recipes."""
    roles = parameter_roles(model)
    for name, param in model.named_parameters():
        if roles[name] == "vector":
            param.mul_(1 - share)


def seed_tensors(model):
    ours = {name: param.detach() for name, param in model.named_parameters()}
    theirs = {
        "token_embedding.weight": ours["embed.weight"],
        "position_embedding.weight": ours["positions.weight"],
        "final_norm.weight": ours["norm.weight"],
    }
    for number, band in enumerate(("early", "late")):
        for matrix, fc in MATRICES.items():
            prefix, seeds = f"bands.{number}.{matrix}", f"primitive_banks.{fc}_banks.{band}"
            bank = model.get_submodule(prefix)
            ins, outs = ours[f"{prefix}.factors"].split(bank.widths, dim=-1)
            theirs |= {f"{seeds}.A": ins.mT, f"{seeds}.B": outs}
            theirs[f"{seeds}.latent_scale"] = ours[f"{prefix}.gain"]
            theirs[f"{seeds}.latent_bias"] = ours[f"{prefix}.bias"]
            if bank.input_norm is not None:
                theirs[f"{seeds}.input_norm.weight"] = ours[f"{prefix}.input_norm.weight"]
    for layer in range(model.config.n_layers):
        block, seeds = f"blocks.{layer}", f"layers.{layer}"
        theirs[f"{seeds}.norm1.weight"] = ours[f"{block}.attention_norm.weight"]
        theirs[f"{seeds}.norm2.weight"] = ours[f"{block}.feedforward_norm.weight"]
        for part in "qkv":
            theirs[f"{seeds}.attention.{part}_proj.weight"] = ours[
                f"{block}.attention.{part}_proj.weight"
            ]
        theirs[f"{seeds}.attention.out_proj.weight"] = ours[f"{block}.attention.o_proj.weight"]
        for matrix, fc in MATRICES.items():
            recipe = ours[f"{block}.feedforward.{matrix}_recipe"]
            theirs[f"{seeds}.ffn.composition_weights.{fc}_logits"] = recipe
        if f"{block}.feedforward.sub_norm.weight" in ours:
            theirs[f"{seeds}.ffn.subln.weight"] = ours[f"{block}.feedforward.sub_norm.weight"]
    return theirs
