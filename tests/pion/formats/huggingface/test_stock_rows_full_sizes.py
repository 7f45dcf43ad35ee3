"""Models of published sizes, with random weights, have the logits of their classes.

`pytest -m soak` runs this, because each model takes gigabytes and up to a minute.
"""

import pytest
import torch
import transformers

from pion.formats.huggingface.architectures import to_transformers
from pion.formats.load import load_decoder
from pion.formats.weights import INDEX
from tests.support.published_models import PUBLISHED
from tests.support.stock_models import apart, randomize, saved, tokens

pytestmark = pytest.mark.soak

# The others take tens of gigabytes.
SIZES = [name for name, (_, _, parameters) in PUBLISHED.items() if parameters < 1e9]


@pytest.mark.parametrize("name", SIZES)
def test_a_model_of_this_size_is_read_from_shards_and_written_again(name, tmp_path):
    kind, fields, parameters = PUBLISHED[name]
    settings = getattr(transformers, f"{kind}Config")(**fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    randomize(model, std=0.03)
    # As the published file has them: without what transformers 5 adds.
    spelled = dict.fromkeys(("rope_parameters", "layer_types"), None)
    ours = load_decoder(saved(model, tmp_path, shard_size="500MB", **spelled | fields))
    assert (tmp_path / INDEX).exists() == (parameters > 125e6)
    assert ours.num_params() == parameters
    text = tokens(200, vocab_size=fields["vocab_size"])
    difference = apart(ours, model, text)
    with torch.inference_mode():
        spread = float(model(text[:, :8]).logits.std())
    print(f"{name}: {parameters:,} parameters, max |Δlogit| {difference:.1e}, σ {spread:.2f}")
    assert difference <= 1e-4
    assert spread > 0.1
    hf_config, hf_state = to_transformers(ours.config, ours.state_dict())
    assert hf_config["architectures"] == [type(model).__name__]
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in hf_state.items())
