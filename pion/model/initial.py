"""Draw a decoder's initial weights.

`normal`: every matrix and embedding from N(0, init_std²).

`zero_outputs`, as in Daisy-Wee: matrices that write into the residual stream, and an untied head,
are 0, so that a new model predicts every id with the same probability. Other matrices are uniform
with the standard deviation ½ / √(input width), and embeddings from N(0, 1). A tied embedding and
routers are from N(0, init_std²).

`uniform`, as in PILON: attention's matrices are uniform with Xavier's variance (Glorot and Bengio
2010), and those of feed-forward layers within ±1 / √(input width). Embeddings are from
N(0, init_std²).

Banks of primitives are drawn by themselves (bank.py), and their recipes from N(0, 0.01²). Gates are
not random (gates.py), and biases are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pion.model.feedforward.experts import Experts
from pion.model.feedforward.gates import Gate
from pion.model.pilon.banks import Bank
from pion.model.pilon.layers import Composed
from pion.model.routed import RoutedRecipes

RECIPE_STD = 0.01
# The matrices that write into the residual stream, and the head.
OUTPUTS = ("o_proj", "down_proj", "lm_head")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def draw_weights(model: nn.Module, init: str, std: float, tied: bool) -> None:
    """Draw the weights of all layers, in the order of the modules. Norms and scalars stay."""
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, Experts | RoutedRecipes):
            nn.init.normal_(module.router, std=std)
        if isinstance(module, Experts):
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                _draw_matrix(getattr(module, matrix), matrix, init, std)
        elif isinstance(module, Bank | Gate):
            module.draw_weights()
        elif isinstance(module, Composed):
            nn.init.normal_(module.up_recipe, std=RECIPE_STD)
            nn.init.normal_(module.down_recipe, std=RECIPE_STD)
        elif isinstance(module, nn.Linear):
            _draw_matrix(module.weight, name, init, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            wide = init == "zero_outputs" and not (tied and path == "embed")
            nn.init.normal_(module.weight, std=1.0 if wide else std)


def _draw_matrix(weight: Tensor, name: str, init: str, std: float) -> None:
    """Draw matrices (…, outputs, inputs)."""
    if init == "normal":
        nn.init.normal_(weight, std=std)
    elif init == "uniform" and name in ATTENTION:
        nn.init.xavier_uniform_(weight)
    elif init == "uniform":
        bound = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
    elif name in OUTPUTS:
        nn.init.zeros_(weight)
    else:
        bound = math.sqrt(3) * 0.5 / math.sqrt(weight.shape[-1])
        with torch.no_grad():
            weight.uniform_(-bound, bound)
