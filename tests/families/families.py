"""One tiny model of each family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pion.model.decoder import Decoder
from pipeline.job.model_section import Model
from pipeline.job.phase_sections import Phase
from pipeline.job.train_sections import phases_of
from tests.support.tiny_config import tiny_config

# More rows than the tokenizers of these tests have ids, as in most published models.
VOCAB = 320
# Rows of two windows and more, so that tokens lie beyond a window's edge.
SEQ_LEN = 48


@dataclass(frozen=True)
class Family:
    """What distinguishes a family from the dense tiny model.

    Attributes:
        model: fields of ModelConfig; a job's `model` section has the same fields.
        training: fields of a job's training sections.
        apart: how far weights may be apart after gradients were added in another order. Rounding
            to a few values makes some differences large.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    apart: float = 1e-5

    def config(self, **changes):
        return tiny_config(**{"vocab_size": VOCAB, "seq_len": SEQ_LEN, **self.model, **changes})

    def settings(self):
        phases = [Phase(**fields) for fields in self.training.get("phases", ())]
        return {**self.training, "phases": phases_of(SimpleNamespace(phases=phases))}

    def job(self):
        """Return the changes that make the tiny job (tests/support/jobs.py) train this family."""
        # Only importers set the other fields of ModelConfig.
        model = {name: value for name, value in self.model.items() if name in Model.model_fields}
        return {f"model__{name}": value for name, value in model.items()} | {
            f"pretrain__{name}": value for name, value in self.training.items()
        }

    def decoder(self, seed=0, **changes):
        """Return the tiny model with the same random weights in each call.

        Unlike initial weights, all of them are random, and large: attention is far from uniform and
        no part has a result of 0, so a wrong mask shows.
        """
        torch.manual_seed(seed)
        model = Decoder(self.config(**changes))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
        return model


EXPERTS = {"n": 4, "d_shared": 16}
WINDOWS = {"tokens": 16, "block": 8, "long_every": 2}
DAISY = {
    "n_layers": 4,
    "windows": WINDOWS,
    "heads": {"scale": 0.12, "value_norm": True, "rotary": "half"},
    "wiring": {
        "attention_layers": [0, 1, 3],
        "attention_norm": False,
        "embed_norm": True,
        "input_mix": True,
        "skips": [[2, 1], [3, 0]],
    },
    "values": {"layers": [0, 3]},
    "activation": "relu2",
    "norm_gain": False,
    "logit_cap": 15.0,
    "tie_embeddings": False,
    "head_multiple": 128,
}
PILON = {
    "activation": "gelu",
    "positions": "learned",
    "heads": {"qk_norm": False},
    "init": "uniform",
}
BANKS = {"n": 8, "rank": 4, "top_k": 3, "bands": [[0], [1]], "diversity_weight": 0.01}
TERNARY = BANKS | {"ternary": True, "activation_bits": 8, "sub_norm": True}
PHASES = [
    {"until": 0.3, "rates": {"recipe": 0}, "top_k": 8},
    {"until": 0.6, "rates": {"primitive": 0}},
    {"unfreeze": [1]},
]
# The slow frequencies of a context of 16 tokens, for one of 48.
SCALING = {"factor": 3.0, "original_max_position_embeddings": 16}
MIXTURE = {
    "norm": "layer",
    "norms": "both",
    "norm_offset": True,
    "parallel": "two norms",
    "activation": "geglu",
    "feedforward_bias": True,
    "windows": {"tokens": 16, "block": 1, "full_layers": [1], "rope_theta": 100.0},
    "scales": {"embeddings": 4.0, "residual": 0.5, "logits": 0.5},
    "heads": {"whole_norm": True, "unrotated_layers": [1], "rotary_share": 0.5},
    "logit_cap": 8.0,
    "logit_cap_kind": "tanh",
}
MUON = {"optimizer": "muon", "muon_decays": False, "muon_momentum_start": 0.85}

FAMILIES = {
    "pion": Family(),
    "softcapped": Family({"softcap": 1.5}),
    "tachyon": Family({"experts": EXPERTS}),
    "daisy": Family(DAISY, {**MUON, "window_schedule": "cubic"}),
    "pilon": Family(PILON | {"primitives": BANKS}, {"phases": PHASES}),
    "ternary": Family(PILON | {"primitives": TERNARY, "activation": "relu2"}, apart=1e-2),
    "routed-recipes": Family(PILON | {"primitives": BANKS, "experts": {"n": 4, "shared": 0}}),
    "gated": Family({"gates": True}),
    "lepton": Family({"slots": {"per_segment": 2, "segment": 8, "window": 2}}),
    "drafted": Family({"draft": {"steps": 2, "ids": 40}}),
    "experts-in-windows": Family({"experts": EXPERTS, "windows": WINDOWS}),
    # What Llama and Qwen2 add, together.
    "biased": Family(
        {"heads": {"qk_norm": False, "qkv_bias": True}, "rope_scaling": SCALING},
        {"optimizer": "muon"},
    ),
    # What Gemma, Granite, GPT-NeoX, OLMo 2 and SmolLM3 add, together.
    "mixture": Family(MIXTURE),
}

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def often(*names):
    """Have these families by default and the others under soak, where each takes long."""
    families = [
        pytest.param(family, id=name, marks=() if name in names else pytest.mark.soak)
        for name, family in FAMILIES.items()
    ]
    return pytest.mark.parametrize("family", families)


# One without more, and one each with experts, with windows and wiring, and with slots.
a_few_families = often("pion", "tachyon", "daisy", "lepton")
