"""Gates learn which tokens need no feed-forward layer, and skip it exactly."""

import pytest
import torch
from torch import Tensor

from pion.errors import BadInput
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.feedforward.dense import SwiGLU
from pion.model.feedforward.gates import FIRST_BIAS
from tests.families.families import FAMILIES, PILON

TOKENS = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(0))
# Between the confidences of this model, so that some tokens skip each layer.
BETWEEN = 0.3


def gated(**changes):
    return FAMILIES["gated"].decoder(**changes)


@torch.no_grad()
def skipping(model, above) -> tuple[Tensor, list[int]]:
    """Return the logits, and how many tokens each feed-forward layer computed."""
    computed = []
    model = model.with_gates(above)
    for block in model.blocks:
        layer = block.feedforward
        assert isinstance(layer, SwiGLU)
        layer.register_forward_hook(
            lambda _, given, result: computed.append(given[0][..., 0].numel())
        )
    return model(TOKENS), computed


def test_skipped_layers_are_not_computed():
    _, computed = skipping(gated(), BETWEEN)
    assert len(computed) == 2
    assert all(0 < tokens < TOKENS.numel() for tokens in computed)
    assert skipping(gated(), 0.0)[1] == []
    assert skipping(gated(), 1.0)[1] == [TOKENS.numel()] * 2


def test_gates_are_off_by_default_and_change_nothing():
    with torch.no_grad():
        model = gated()
        weights = {n: t for n, t in model.state_dict().items() if ".gate." not in n}
        plain = Decoder.from_state(FAMILIES["pion"].config(), weights)
        assert torch.equal(model(TOKENS), plain(TOKENS))
        torch.testing.assert_close(skipping(gated(), 1.0)[0], plain(TOKENS))


def test_a_skipped_layer_adds_nothing():
    """Compare with a plain computation of all layers, whose results are then masked."""
    model = gated()
    expected_of = []

    def masked(block, given, _):
        x, inputs, *_ = given
        heads = block.attention.heads(block.attention_norm(x), inputs.attention)
        seen = x + block.attention.o_proj(block.attention.mix(heads, inputs.attention))
        skipped = block.gate(seen).sigmoid() > BETWEEN
        added, _ = block.feedforward(block.feedforward_norm(seen), inputs.feedforward)
        expected_of.append(skipped)
        return seen + torch.where(skipped[..., None], 0, added), {}

    for block in model.blocks:
        block.register_forward_hook(masked)
    with torch.no_grad():
        expected = model(TOKENS)
    assert all(skipped.any() and not skipped.all() for skipped in expected_of)
    torch.testing.assert_close(skipping(gated(), BETWEEN)[0], expected)


@pytest.mark.parametrize(
    "family", [{}, PILON | {"primitives": {"n": 8, "rank": 4, "top_k": 3, "bands": [[0, 1]]}}]
)
def test_a_cached_text_has_the_logits_of_the_whole_text(family):
    model = gated(**family).with_gates(BETWEEN)
    with torch.no_grad():
        whole = model(TOKENS)
        cache = KVCache(model.config)
        pieces = [model(piece, cache=cache) for piece in TOKENS.split([10, 1, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- learning


def test_only_gates_learn_from_the_loss_of_gates():
    model = gated()
    model.losses(TOKENS, TOKENS).aux.backward()
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert learned == {f"blocks.{n}.gate.{name}" for n in (0, 1) for name in ("weight", "bias")}


def test_new_gates_are_equally_unsure_and_the_report_is_their_loss():
    model = Decoder(FAMILIES["gated"].config())
    losses = model.losses(TOKENS, TOKENS)
    for block in model.blocks:
        assert (block.gate.weight == 0).all()
        assert block.gate.bias.item() == FIRST_BIAS
    assert losses.stats["gate_loss"].mean() == pytest.approx(losses.aux.item() / 3, rel=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: FAMILIES["pion"].decoder().with_gates(0.5), "has no gates"),
        (lambda: gated().with_gates(1.5), "1.5 is no confidence"),
        (lambda: gated().with_gates(float("nan")), "nan is no confidence"),
    ],
)
def test_gates_that_are_not_there_or_no_number_are_refused(use, message):
    with pytest.raises(BadInput, match=message):
        use()
