"""What each parameter is for. Its role decides which optimizer updates it, and its weight decay.

A part of the model states the roles of its parameters where the shape does not tell:

    roles = {"router": "vector"}

The names are relative to the part, so a part may also state a role for a parameter of its children.
"""

from __future__ import annotations

from torch import nn

from pion.parameter_role import Role


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of each parameter of `model`, by its name in the state dict."""
    stated: dict[str, Role] = {}
    by_shape: dict[str, Role] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, role in getattr(module, "roles", {}).items():
            stated.setdefault(prefix + name, role)
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                by_shape[prefix + name] = "embedding"
            else:
                by_shape[prefix + name] = "matrix" if parameter.ndim >= 2 else "vector"
    return {name: stated.get(name, by_shape[name]) for name, _ in model.named_parameters()}


def vocabulary_rows(model: nn.Module) -> list[str]:
    """Return the names of the parameters that have a row for each token id."""
    roles = parameter_roles(model)
    return [name for name, role in roles.items() if role in ("embedding", "head")]
