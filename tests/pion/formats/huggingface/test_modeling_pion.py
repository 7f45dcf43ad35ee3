"""A decoder with the interface of transformers: masks, labels, caches, generation."""

from dataclasses import replace

import pytest
import torch

import pion
from tests.support.capped_models import MIXED, MODELS, scrambled

PAD = 1
GREEDY = {"do_sample": False, "pad_token_id": PAD}
PROMPTS = [[5, 9, 250, 31, 7, 88, 14, 200, 3, 41], [17, 4]]


def wrapped(name):
    """Return a model as an export has it: without rows beyond the vocabulary."""

    from pion.formats.huggingface.modeling_pion import PionConfig, PionForCausalLM

    ours = scrambled(replace(MODELS[name], head_multiple=1))
    model = PionForCausalLM(PionConfig(decoder_settings=ours.config.to_dict()))
    model.decoder.load_state_dict(ours.state_dict())
    return model.eval()


def padded(side):
    """Return the prompts as one batch, and its attention mask."""
    width = max(map(len, PROMPTS))
    rows, mask = [], []
    for prompt in PROMPTS:
        fill = width - len(prompt)
        left = fill if side == "left" else 0
        rows.append([PAD] * left + prompt + [PAD] * (fill - left))
        mask.append([0] * left + [1] * len(prompt) + [0] * (fill - left))
    return torch.tensor(rows), torch.tensor(mask)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return wrapped(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padding_changes_no_logit_of_a_token(side, model):
    tokens, mask = padded(side)
    logits = model(tokens, attention_mask=mask).logits
    for row, prompt in enumerate(PROMPTS):
        alone = model.decoder(torch.tensor([prompt]))[0]
        # Products of matrices with more rows are rounded in another order on some processors.
        torch.testing.assert_close(logits[row, mask[row].bool()], alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_loss_is_ours_and_padding_has_none(model):
    whole = torch.tensor([PROMPTS[0]])
    ours = model.decoder.loss(whole[:, :-1], whole[:, 1:])
    torch.testing.assert_close(model(whole, labels=whole).loss, ours)
    tokens, mask = padded("left")
    losses = [model.decoder.loss(t[:, :-1], t[:, 1:], reduction="sum") for p in PROMPTS
              for t in [torch.tensor([p])]]  # fmt: skip
    expected = sum(losses) / sum(len(prompt) - 1 for prompt in PROMPTS)
    torch.testing.assert_close(model(tokens, attention_mask=mask, labels=tokens).loss, expected)


@pytest.mark.parametrize("use_cache", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_greedy_generation_is_ours_in_a_padded_batch_too(use_cache, model):
    tokens, mask = padded("left")
    found = model.generate(
        tokens, attention_mask=mask, max_new_tokens=30, use_cache=use_cache, **GREEDY
    )
    for row, prompt in enumerate(PROMPTS):
        ours = list(pion.generate(model.decoder, prompt, max_tokens=30, temperature=0, stop_ids=()))
        assert found[row, tokens.shape[1] :].tolist() == ours


@torch.inference_mode()
def test_a_cache_continues_a_text_in_any_pieces(model):
    tokens = torch.randint(0, 287, (2, 60), generator=torch.Generator().manual_seed(2))
    whole = model(tokens).logits
    cache, pieces = None, []
    for piece in tokens.split([1, 17, 20, 22], dim=1):
        found = model(piece, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        pieces.append(found.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-4)


def test_only_the_last_logits_can_be_asked_for(model):
    tokens = torch.tensor([PROMPTS[0]])
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, model(tokens).logits[:, -2:])


def test_sampled_sequences_share_a_prompt_and_end_where_the_context_ends(model):
    torch.manual_seed(0)
    found = model.generate(
        torch.tensor([PROMPTS[0]]),
        max_new_tokens=1000,
        do_sample=True,
        num_return_sequences=3,
        pad_token_id=PAD,
    )
    assert found.shape == (3, 64)
    assert len({tuple(row) for row in found.tolist()}) == 3


def test_other_libraries_find_the_context_and_the_vocabulary():
    from pion.formats.huggingface.modeling_pion import PionConfig

    config = PionConfig(decoder_settings=MIXED.to_dict())
    assert (config.max_position_embeddings, config.vocab_size, config.hidden_size) == (64, 287, 32)
    assert not hasattr(config, "num_experts")


# ---------------------------------------------------------------- what is refused


def test_what_would_be_wrong_is_refused():
    model = wrapped("dense")
    tokens, mask = padded("right")
    with pytest.raises(ValueError, match="padding_side='left'"):
        model.generate(tokens, attention_mask=mask, max_new_tokens=2, **GREEDY)
    with pytest.raises(ValueError, match=r"shape \(2, 9\); it must be \(2, 10\)"):
        model(tokens, attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="shape"):
        model(tokens, attention_mask=mask[:, None, None])
    with pytest.raises(ValueError, match="has its own cache"):
        model(tokens, past_key_values=((torch.zeros(1), torch.zeros(1)),))
    with pytest.raises(ValueError, match="has its own cache"):
        model.generate(tokens[:1], cache_implementation="static", max_new_tokens=2, **GREEDY)
    with pytest.raises(ValueError, match="cannot be reordered"):
        model.generate(tokens[:1], num_beams=2, max_new_tokens=2, **GREEDY)
    with pytest.raises(TypeError, match="position_ids"):
        model(tokens, position_ids=tokens)
    cache = model(*padded("left"), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="give the attention_mask of the first tokens"):
        model(tokens[:, :1], past_key_values=cache)
