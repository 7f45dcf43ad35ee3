"""What a parameter can be for. Without torch, so that a job can be read fast."""

from __future__ import annotations

from typing import Literal

# A matrix maps hidden states to hidden states. The embedding and the head have a row for each token
# id. A router has a row for each expert. Primitives are shared by layers, and a recipe says which
# primitives a layer uses. A gate says which tokens need no feed-forward layer. All else is a
# vector: gains, scalars and the vectors of positions.
Role = Literal["matrix", "router", "embedding", "head", "primitive", "recipe", "gate", "vector"]
