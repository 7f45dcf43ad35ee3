"""All kernels compute the same attention as the reference in this file."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.model import decoder
from pion.model.attention import attention, masks
from pion.model.attention.attention import (
    FOLDED_TOKENS,
    attend,
    attend_flex,
    attend_folded,
    attend_short,
    attend_softcapped,
    kernels_of_any_length,
)
from pion.model.attention.cache import KVCache
from pion.model.attention.masks import Mask, block_mask, build_mask, document_lengths
from pion.model.decoder import Decoder
from pion.model.parameters import parameter_roles
from tests.support.operations import Operations, tensors_in

B, H, K, T, D = 2, 6, 2, 20, 16
CPU = torch.device("cpu")


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(B, H, T, D) * 3, torch.randn(B, K, T, D), torch.randn(B, K, T, D)


def config(**overrides):
    settings = {"d_model": H * D, "n_layers": 1, "n_heads": H, "n_kv_heads": K, "d_ff": 8}
    return ModelConfig(**settings, vocab_size=10, seq_len=64, **overrides)


def row(tokens):
    return torch.zeros(1, tokens, dtype=torch.int64)


def written_out(query, key, value, softcap=None, documents=None):
    """One query at a time: query head j reads key/value head j // (H / K)."""
    out = torch.empty_like(query)
    for b in range(B):
        for head in range(H):
            for t in range(T):
                seen = [
                    s
                    for s in range(t + 1)
                    if documents is None or documents[b, s] == documents[b, t]
                ]
                scores = key[b, head // (H // K), seen] @ query[b, head, t] / D**0.5
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[b, head, t] = scores.softmax(0) @ value[b, head // (H // K), seen]
    return out


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [-1] * 6, [0] * 20])


each_row = pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "packed"])


@each_row
def test_attention_in_bf16_is_that_of_fp32_rounded(qkv, documents):
    mask = build_mask(config(), row(T), T, documents)
    rounded = attend(*(x.bfloat16() for x in qkv), mask, None).float()
    exact = written_out(*(x.bfloat16().float() for x in qkv), documents=documents)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("softcap", [None, 1.5])
@each_row
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_kernel_computes_what_is_written_out(qkv, softcap, documents):
    mask = build_mask(config(softcap=softcap), row(T), T, documents)
    found = [attend(*qkv, mask, softcap)]
    if softcap is None:
        found.append(attend_short(*qkv, mask))
    with torch.compiler.set_stance("force_eager"):
        found.append(attend_flex(*qkv, block_mask(T, documents, CPU), softcap))
    expected = written_out(*qkv, softcap, documents)
    for result in found:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "documents",
    [
        DOCUMENTS,
        torch.zeros(B, T, dtype=torch.int64),
        torch.arange(T).repeat(B, 1),  # of one token each
        torch.tensor([[0] + [1] * 18 + [2], [0] * 19 + [1]]),  # these two meet between the rows
    ],
    ids=["packed", "one document a row", "of one token", "at the ends"],
)
def test_each_document_is_attended_to_alone_in_a_long_row_on_a_cpu(qkv, documents):
    found = attend(*qkv, Mask(documents=document_lengths(documents)), None)
    torch.testing.assert_close(found, written_out(*qkv, documents=documents), rtol=1e-5, atol=1e-5)


def test_long_rows_of_documents_attend_one_after_another(monkeypatch):
    """They have the loss and the gradients of the mask for all of them."""
    torch.manual_seed(0)
    model = Decoder(config())
    tokens = torch.randint(10, (B, T))
    model.loss(tokens, tokens, documents=DOCUMENTS).backward()
    masked = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(masks, "LONGEST_MASKED_ROW", T - 1)
    monkeypatch.setattr(masks, "build_mask", None)
    model.loss(tokens, tokens, documents=DOCUMENTS).backward()
    alone = [weight.grad for weight in model.parameters()]
    torch.testing.assert_close(alone, masked, rtol=1e-5, atol=1e-6)


EARLIER = torch.tensor([T - 3, 4])  # how many tokens each row of a cache has


def of_cached(new):
    """Return which keys the next tokens of the rows see, (B, 1, new, T)."""
    return (torch.arange(T) <= (EARLIER[:, None] + torch.arange(new))[:, :, None])[:, None]


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("new", [1, 3])
def test_folded_query_heads_attend_as_each_for_itself(qkv, new, softcap):
    query, key, value = qkv
    query, allowed = query[:, :, :new], of_cached(new)
    expected = torch.empty_like(query)
    for head in range(H):
        group = slice(head // (H // K), head // (H // K) + 1)
        own = query[:, head : head + 1], key[:, group], value[:, group]
        expected[:, head : head + 1] = attend(*own, Mask(allowed=allowed), softcap)
    attend_together = attend_folded if softcap is None else partial(attend_softcapped, softcap=1.5)
    found = attend_together(query, key, value, allowed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mask_that_rows_share_and_no_mask_are_folded_too(qkv):
    query, key, value = qkv
    shared = build_mask(config(), row(3), T, None).allowed
    assert shared.dim() == 2
    found = attend_folded(query[:, :, -3:], key, value, shared)
    torch.testing.assert_close(found, written_out(*qkv)[:, :, -3:], rtol=1e-5, atol=1e-5)
    found = attend_folded(query[:, :, -1:], key, value, None)
    torch.testing.assert_close(found, written_out(*qkv)[:, :, -1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_folded_query_heads_need_no_keys_of_their_own(qkv, softcap):
    """Even the kernel that torch falls back to, which repeats the keys of groups."""
    query, key, value = qkv
    given = query[:, :, :1], key, value, of_cached(1)
    with sdpa_kernel(SDPBackend.MATH), Operations() as seen:
        attend_folded(*given) if softcap is None else attend_softcapped(*given, softcap)
    made = tensors_in([operation.result for operation in seen.calls])
    largest = max(min(tensor.stored, tensor.shape.numel()) for tensor in made)
    assert largest <= key.numel() < B * H * T * D


@pytest.mark.parametrize(("new", "folds"), [(1, 1), (5, 1), (FOLDED_TOKENS + 1, 0), (99, 0)])
def test_on_a_card_the_query_heads_of_a_few_next_tokens_are_folded(monkeypatch, new, folds):
    """Of many, the repeated mask would be larger than the keys; a whole row has 99."""
    folded = []
    monkeypatch.setattr(attention, "attend_folded", lambda *given: folded.append(given))
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda *given, **how: None)
    with FakeTensorMode():
        query, key = (
            torch.zeros(B, heads, n, D, device="cuda") for heads, n in ((H, new), (K, 99))
        )
        attend(query, key, key, Mask(), None)
    assert len(folded) == folds


def test_one_new_token_needs_no_mask_and_whole_sequences_none_in_memory():
    assert build_mask(config(), row(1), 50, None) == Mask()
    assert build_mask(config(), row(50), 50, None) == Mask(causal=True)


def test_grouped_queries_take_the_fused_kernel_on_a_cpu(qkv):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(*qkv, Mask(causal=True), None)
        attend(*qkv, build_mask(config(), row(T), T, DOCUMENTS), None)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2


# ---------------------------------------------------------------- biases of queries, keys, values

BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def test_new_biases_are_vectors_of_0_and_all_else_is_as_in_the_model_without_them():
    model = Decoder(config(heads={"qk_norm": False, "qkv_bias": True}))
    assert all(not model.state_dict()[f"blocks.0.attention.{name}"].any() for name in BIASES)
    plain = Decoder(config(heads={"qk_norm": False}))
    assert model.state_dict().keys() - plain.state_dict().keys() == {
        f"blocks.0.attention.{name}" for name in BIASES
    }
    assert "qkv_bias" not in plain.config.to_dict()["heads"]
    # So they do not decay, and Muon leaves them to AdamW.
    assert {parameter_roles(model)[f"blocks.0.attention.{name}"] for name in BIASES} == {"vector"}


def test_only_training_on_a_gpu_uses_attention_that_makes_plans_for_a_length(monkeypatch):
    """cuDNN is allowed by a switch of the process, also where there is no GPU."""
    allowed = []

    def attend_and_ask(*arguments, **settings):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **settings)

    gpu = kernels_of_any_length(torch.device("cuda"))
    monkeypatch.setattr(decoder, "kernels_of_any_length", lambda device: gpu)
    monkeypatch.setattr("pion.model.attention.attention.attend", attend_and_ask)
    model = Decoder(config())
    model.losses(row(8), row(8))
    with torch.no_grad():
        model(row(8), cache=KVCache(model.config, max_tokens=8))
    assert allowed == [True, False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("settings", "joined"),
    [
        ({}, [3]),
        ({"heads": Heads(qk_norm=False)}, [3]),
        ({"positions": "learned"}, [3]),
        ({"positions": "learned", "heads": Heads(qk_norm=False)}, []),
        ({"positions": "learned", "heads": Heads(qk_norm=False, value_norm=True)}, [3]),
    ],
)
def test_heads_that_go_to_attention_as_they_are_are_not_joined(monkeypatch, settings, joined):
    """Their gradients come from attention one by one, and joining them would be a copy."""
    seen = []

    def together(x, projections):
        seen.append(len(projections))
        return [projection(x) for projection in projections]

    monkeypatch.setattr(attention, "project_together", together)
    Decoder(config(**settings))(row(4))
    assert seen == joined
