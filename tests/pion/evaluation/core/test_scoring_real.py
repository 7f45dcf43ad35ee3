"""A published model's choices are those of nanochat's code around transformers, item by item.

Neither is in this repository: PION_REAL_MODELS is a folder with the model's, and PION_NANOCHAT a
checkout of nanochat. See tests/README.md.
"""

import os
from pathlib import Path

import pytest

from benchmarks.core_oracle import compare_real_model

MODELS, NANOCHAT = (os.environ.get(name, "") for name in ("PION_REAL_MODELS", "PION_NANOCHAT"))


@pytest.mark.soak
@pytest.mark.skipif(not (MODELS and NANOCHAT), reason="PION_REAL_MODELS or PION_NANOCHAT is unset")
def test_a_real_models_choices_are_nanochats(made_up):
    found = compare_real_model(Path(NANOCHAT), Path(MODELS) / "smollm2-135m-instruct", made_up)
    assert found.differing == ()
    assert found.equal >= 33
