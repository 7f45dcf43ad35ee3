"""The decoder's shapes, sizes and promises. test_seeds.py compares its math with the seeds'."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pion.bench.models import check_model
from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.errors import BadInput
from pion.model.attention import rope
from pion.model.decoder import Decoder
from pion.model.forward_pass import Pass, StepOptions
from pion.model.params_and_flops import cost_of
from tests.support.tiny_config import tiny_config

VOCAB, CONTEXT = 61, 24
CONFIG = tiny_config(vocab_size=VOCAB, seq_len=CONTEXT, init_std=0.2)


@pytest.fixture(params=[None, 1.5], ids=["plain", "softcapped"])
def decoder(request):
    torch.manual_seed(0)
    return Decoder(replace(CONFIG, softcap=request.param))


@pytest.fixture
def tokens():
    return torch.randint(0, VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets(tokens):
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    targets[0, :9] = -100
    return targets


# Preset, weights, weights that a token uses, and weights of the embedding.
SIZES = [
    ("pion-nano", 28_742_016, 28_742_016, 19_299_072),
    ("pion-micro", 59_563_008, 59_563_008, 25_732_096),
    ("pion-small", 102_967_168, 102_967_168, 32_165_120),
    ("pion-base", 164_461_312, 164_461_312, 38_598_144),
    ("pion-large", 322_050_048, 322_050_048, 51_464_192),
    ("pion-xl", 770_922_240, 770_922_240, 77_196_288),
    ("pion2-pico", 1_263_232, 1_263_232, 262_144),
    ("pion2-nano", 22_026_624, 22_026_624, 6_291_456),
    ("pion2-micro", 67_386_880, 67_386_880, 16_777_216),
    ("pion2-small", 112_747_136, 112_747_136, 20_971_520),
    ("pion2-base", 176_197_376, 176_197_376, 25_165_824),
    ("pion2-large", 337_697_792, 337_697_792, 33_554_432),
    ("pion2-xl", 794_391_040, 794_391_040, 50_331_648),
    ("pion2-max-pico", 1_343_504, 1_343_504, 262_144),
    ("pion2-max-nano", 25_952_280, 25_952_280, 6_291_456),
    ("pion2-max-micro", 83_886_128, 83_886_128, 16_777_216),
    ("pion2-max-small", 127_926_336, 127_926_336, 20_971_520),
    ("pion2-max-base", 228_589_648, 228_589_648, 25_165_824),
    ("pion2-max-large", 369_098_848, 369_098_848, 33_554_432),
    ("pion2-max-xl", 794_296_432, 794_296_432, 50_331_648),
    ("tachyon-tiny", 109_906_432, 75_303_424, 25_732_096),
    ("tachyon-small", 1_270_076_416, 439_604_224, 51_464_192),
    ("tachyon-medium", 3_404_116_224, 1_139_192_064, 77_196_288),
    ("tachyon-large", 7_414_099_968, 2_431_266_816, 102_928_384),
    ("daisy-pico", 125_247_390, 125_247_390, 19_298_688),
    ("daisy-pico-tied", 145_435_166, 145_435_166, 25_731_584),
    ("daisy-280m", 302_399_292, 302_399_292, 38_597_376),
    ("daisy-420m", 468_210_768, 468_210_768, 51_463_168),
    ("daisy-470m", 468_210_768, 468_210_768, 51_463_168),
    ("daisy-1.6b-sparse", 1_627_913_840, 1_627_913_840, 80_411_200),
    ("daisy-350m", 458_690_640, 458_690_640, 51_463_168),
    ("daisy-1.6b", 1_876_691_440, 1_876_691_440, 80_411_200),
    ("pilon-48m", 69_793_600, 69_793_600, 25_731_584),
    ("pilon-48m-rope", 69_519_680, 69_519_680, 25_731_584),
    ("pilon-48m-dense", 51_168_256, 51_168_256, 25_731_584),
    ("pilon-360m", 350_926_528, 350_926_528, 51_463_168),
    ("pilon-500m", 486_757_248, 486_757_248, 51_463_168),
    ("lepton-nano", 11_421_248, 11_421_248, 9_649_344),
    ("lepton-micro", 17_687_296, 17_687_296, 12_865_792),
    ("lepton-tiny", 33_463_168, 33_463_168, 19_298_688),
    ("lepton-small", 63_693_312, 63_693_312, 25_731_584),
    ("lepton-medium", 151_875_584, 151_875_584, 38_597_376),
    ("lepton-large", 304_484_864, 304_484_864, 51_463_168),
    ("lepton-xl", 756_768_768, 756_768_768, 77_194_752),
    ("lepton-xxl", 1_715_806_208, 1_715_806_208, 102_926_336),
]


@pytest.mark.parametrize(("preset", "count", "active", "embedding"), SIZES)
def test_each_size_has_exactly_the_published_number_of_weights(preset, count, active, embedding):
    config = ModelConfig.preset(preset)
    with torch.device("meta"):
        decoder = Decoder(config)
    assert (decoder.num_params(), decoder.num_params(active=True)) == (count, active)
    assert cost_of(config).all_params == count
    assert decoder.embed.weight.numel() == embedding


def test_every_preset_is_counted_above():
    assert {preset for preset, *_ in SIZES} == set(PRESETS)


def test_training_and_evaluation_mode_compute_the_same(decoder, tokens):
    assert torch.equal(decoder.train()(tokens), decoder.eval()(tokens))


def test_a_batch_without_targets_costs_nothing_and_teaches_nothing(decoder, tokens):
    loss = decoder.loss(tokens, torch.full_like(tokens, -100))
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in decoder.parameters())


def test_the_loss_is_the_mean_cross_entropy_and_the_tied_weight_learns_as_embedding_and_as_head(
    decoder, tokens, targets
):
    loss = decoder.loss(tokens, targets)
    loss.backward()
    fused = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    expected = cross_entropy(decoder(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    expected.backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(fused[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_recomputation_changes_memory_but_not_a_single_gradient(
    decoder, tokens, targets, monkeypatch
):
    monkeypatch.setattr(torch, "get_rng_state", None)  # a pass that is captured may not read it

    def saved_bytes(recompute):
        sizes = []

        def note(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = decoder.loss(tokens, targets, options=StepOptions(recompute=recompute))
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in decoder.parameters()]
        decoder.zero_grad()
        return sum(sizes), gradients

    kept, expected = saved_bytes(False)
    recomputed, gradients = saved_bytes(True)
    assert recomputed < kept / 4
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_scalars_of_all_layers_learn_at_once_and_as_each_for_itself(monkeypatch, recompute):
    """A scalar that is read for itself has a gradient of the size of all scalars."""

    def learned():
        torch.manual_seed(0)
        model = Decoder(check_model("daisy", tiny=True))
        for _ in range(2):
            tokens = torch.randint(0, 128, (3, 48))
            model.loss(tokens, tokens, options=StepOptions(recompute=recompute)).backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    found = learned()
    each = lambda now, weight: [weight.view(-1)[i] for i in range(weight.numel())]  # noqa: E731
    monkeypatch.setattr(Pass, "elements", each)
    expected = learned()
    assert {"wiring.gates", "wiring.mix", "values.mix"} <= expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_bf16_autocast_keeps_weights_gradients_and_loss_fp32(decoder, tokens, targets):
    exact = decoder.loss(tokens, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.loss(tokens, targets)
        logits = decoder(tokens)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in decoder.parameters()} == {torch.float32}
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    assert not torch.equal(loss, exact)


def test_the_first_forward_may_be_in_inference_mode(tokens, targets):
    decoder = Decoder(replace(CONFIG, rope_theta=12_345.0))
    with torch.inference_mode():
        decoder(tokens)
    decoder.loss(tokens, targets).backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_more_tokens_than_the_context_are_refused(decoder):
    with pytest.raises(BadInput, match="25 tokens are more than the model's context of 24"):
        decoder(torch.zeros(1, CONTEXT + 1, dtype=torch.int64))


PARTS = {
    "rotary": {},
    "learned positions": {"positions": "learned"},
    "no table": {"rope_theta": 500.0},
    "slots": {"slots": {"per_segment": 2, "segment": 4, "window": 2}},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_row_of_documents_may_be_longer_than_the_context(monkeypatch, name):
    if name == "no table":
        monkeypatch.setattr(rope, "LARGEST_TABLE", 1)
    model = Decoder(tiny_config(vocab_size=VOCAB, seq_len=CONTEXT, init_std=0.2, **PARTS[name]))
    lengths = (CONTEXT, 10, CONTEXT - 1)
    row = torch.randint(0, VOCAB, (1, sum(lengths)))
    documents = torch.repeat_interleave(torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    together = model(row, positions=positions, documents=documents)
    alone = torch.cat([model(piece) for piece in row.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    for given in ({"documents": documents}, {"positions": positions}):
        with pytest.raises(BadInput, match="more than the model's context"):
            model(row, **given)


def test_log_probs_are_those_of_the_logits_and_sum_up_to_the_loss(decoder, tokens, targets):
    found = decoder.log_probs(tokens, targets)
    chosen = decoder(tokens).log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])
    expected = chosen[..., 0] * (targets != -100)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-5, atol=1e-5)
    losses = decoder.losses(tokens, targets)
    torch.testing.assert_close(-found.log_probs.sum(), losses.ce)
    assert found.aux == losses.aux == 0


def test_weights_come_back_from_a_state_dict_in_fp32(decoder, tokens):
    state = {name: tensor.bfloat16() for name, tensor in decoder.state_dict().items()}
    again = Decoder.from_state(decoder.config, state)
    assert all(parameter.requires_grad for parameter in again.parameters())
    for name, parameter in again.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state[name].float())
        assert parameter.data_ptr() != state[name].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), "have no norm.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected tensor extra: this model"),
        (
            lambda state: state.update({"embed.weight": torch.zeros(5, 32)}),
            r"embed.weight has shape \(5, 32\); the model's settings need \(61, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    state = Decoder(CONFIG).state_dict()
    change(state)
    with pytest.raises(BadInput, match=message):
        Decoder.from_state(CONFIG, state)


def test_a_joined_model_is_another_one_that_shares_the_weights(decoder, tokens, targets):
    joined = decoder.joined()
    pairs = list(zip(decoder.parameters(), joined.parameters(), strict=True))
    assert all(own.data_ptr() == shared.data_ptr() for own, shared in pairs)
    with pytest.raises(RuntimeError, match="does not require grad"):
        joined.loss(tokens, targets).backward()
    decoder.loss(tokens, targets).backward()
    assert all(own.grad is not None for own, _ in pairs)
