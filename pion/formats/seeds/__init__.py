"""Read the checkpoints of the seed projects without running any code in them.

A seed is one of the public projects that Pion grew out of. The family of a checkpoint is recognized
by the names of its tensors, never by a class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.seeds.daisy import from_daisy
from pion.formats.seeds.pilon import from_pilon
from pion.formats.seeds.pion_and_tachyon import from_pion, from_tachyon
from pion.formats.seeds.read import SeedCheckpoint, read_checkpoint
from pion.model.decoder import Decoder
from pion.model.parameters import require_possible

# By a part of a tensor's name: a family that can't be imported, and why.
REFUSED = {
    "tok_emb.": "a Lepton. A Lepton's forward pass saw the tokens that it was trained to predict, "
    "so its weights are of no use",
}

# By family: what reads its checkpoints, and parts of names that only its tensors have.
Importer = Callable[[SeedCheckpoint], tuple[ModelConfig, dict[str, Tensor]]]
SEEDS: dict[str, tuple[Importer, tuple[str, ...]]] = {
    "PILON": (from_pilon, ("token_embedding.", "primitive_banks.")),
    "Pion": (from_pion, (".ffn.w",)),
    "Tachyon": (from_tachyon, (".moe.",)),
    "Daisy-Wee": (from_daisy, ("lm_head_w", "scalars", "qkvo_w")),
}


def import_seed(path: str | Path) -> Decoder:
    """Return the model of a seed's checkpoint, in fp32 on the CPU.

    The Pion seed applied its softcap only in training; an imported model with a softcap always
    applies it. Raises BadInput for a file that is not such a checkpoint or has more than plain
    data, and for a family that can't be imported.
    """
    checkpoint = read_checkpoint(Path(path))
    try:
        _refuse(checkpoint.tensors)
        config, state = _translate(checkpoint)
        require_possible(config, state)
        return Decoder.from_state(config, state)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def ids_of_seed(path: str | Path) -> int | None:
    """Return how many ids the tokenizer of a seed's checkpoint has; None: its tensors do not tell.

    A PILON has a row for each id, also after fine-tuning added some. Raises BadInput like
    `import_seed`.
    """
    table = read_checkpoint(Path(path)).tensors.get("token_embedding.weight")
    return None if table is None else len(table)


def _translate(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, dict[str, Tensor]]:
    names = sorted(checkpoint.tensors)
    family_tensors = {
        family: marked[0]
        for family, (_, marks) in SEEDS.items()
        if (marked := [name for mark in marks for name in names if mark in name])
    }
    if len(family_tensors) > 1:
        tensors = ", and ".join(
            f"{name} is a {family}'s" for family, name in family_tensors.items()
        )
        raise BadInput(f"the tensors are mixed: {tensors}")
    return SEEDS[next(iter(family_tensors), "Pion")][0](checkpoint)


def _refuse(names: Iterable[str]) -> None:
    for name, (mark, family) in product(names, REFUSED.items()):
        if mark in name:
            raise BadInput(f"the tensor {name} shows that this is {family}")
