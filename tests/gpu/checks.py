"""What a card has to compute right, by name. On a CPU, tiny models run all this in seconds."""

from collections.abc import Callable
from functools import partial

from pion.bench.losses import LIMITS, check_losses
from pion.bench.models import Bench
from pion.bench.results import Outcome
from pion.config.presets import FAMILIES
from tests.gpu.compiler import check_compiler
from tests.gpu.kernels import (
    check_compiled_loss,
    check_experts,
    check_flex,
    check_loss,
    check_masks,
)
from tests.gpu.outputs import KINDS, check_generation, check_graphs, check_logits
from tests.gpu.recovery import check_resume, check_step_down

CHECKS: dict[str, Callable[[Bench], Outcome]] = {
    **{f"logits/{family}": partial(check_logits, family=family) for family in FAMILIES},
    **{
        f"losses/{family}/{dtype}": partial(check_losses, family=family, dtype=dtype)
        for family in FAMILIES
        for dtype in LIMITS
    },
    **{f"compiler/{family}": partial(check_compiler, family=family) for family in FAMILIES},
    **{f"generation/{kind}": partial(check_generation, kind=kind) for kind in KINDS},
    **{f"resume/{family}": partial(check_resume, family=family) for family in FAMILIES},
    "graphs": check_graphs,
    "masks": check_masks,
    "kernels/loss": check_loss,
    "kernels/compiled-loss": check_compiled_loss,
    "kernels/experts": check_experts,
    "kernels/flex": check_flex,
    "step-down": check_step_down,
}
