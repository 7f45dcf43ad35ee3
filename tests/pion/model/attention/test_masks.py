"""Windows see what Daisy-Wee's reference tables say, and every form of a mask says the same."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from pion.config.model_config import ModelConfig
from pion.config.parts import Windows
from pion.model.attention.masks import (
    block_mask,
    build_mask,
    build_masks,
    expand,
    mean_keys,
    to_block_mask,
    visible,
    visited_blocks,
)
from pion.model.attention.reach import reach_of
from pion.model.attention.slot_entries import entries_of
from pion.model.attention.slot_masks import mask_of_rows
from pion.train.memory_trace.live_bytes import LiveBytes
from tests.gpu.kernels import shown_by_blocks
from tests.paths import SEEDS


def row(tokens):
    """Return a row of so many tokens."""
    return torch.zeros(1, tokens, dtype=torch.int64)


def config(tokens=64, block=16, n_layers=6):
    shape = {"d_model": 32, "n_layers": n_layers, "n_heads": 2, "n_kv_heads": 2, "d_ff": 32}
    windows = Windows(tokens=tokens, block=block)
    return ModelConfig(**shape, vocab_size=50, seq_len=1024, windows=windows)


def reference_of(name):
    return torch.load(SEEDS / f"daisy_{name}ref.pt", weights_only=True)


def documents_of(tokens):
    return (tokens == 128).cumsum(dim=0)[None]


def visited(name, documents) -> tuple[Tensor, Tensor]:
    """Return the full and the partial blocks of a window, called such as `short_w3`."""
    kind, _, blocks = name.partition("_w")
    count = int(blocks) if kind == "long" else int(blocks) // 2
    return visited_blocks(documents, count, 128)


def tables():
    trace, old = reference_of("trace_"), reference_of("old_")
    documents = {"trace": trace["docs_step0"].long()[None], "old": documents_of(old["input_ids"])}
    both = {"trace": trace["block_tables_step0"], "old": old["block_tables"]}
    return [(name, table, documents[file]) for file in both for name, table in both[file].items()]


def test_every_window_sees_what_the_seeds_masks_say():
    reference = reference_of("")
    documents = documents_of(reference["input_ids"])
    for blocks in (1, 2, 3, 4):
        for kind in ("long", "short"):
            full, partial = visited(f"{kind}_w{blocks}", documents)
            ours = expand(full | partial, documents, 128)[0, 0].numpy()
            packed = reference[f"mask_{kind}_w{blocks}_packed"].numpy()
            assert np.array_equal(ours, np.unpackbits(packed, axis=1).astype(bool))


def test_every_window_visits_what_the_seeds_block_tables_say():
    found = tables()
    assert len(found) == 36
    for name, table, documents in found:
        full, partial = visited(name, documents)
        assert torch.equal((2 * full.int() + partial.int())[0], table["visit"].int()), name
        mask = expand(full | partial, documents, 128)[0, 0]
        assert torch.equal(mask.sum(dim=1), table["keys_per_row"].long()), name
        assert hashlib.sha256(mask.numpy().tobytes()).hexdigest() == table["sha256"], name


def test_a_block_mask_shows_the_kernel_what_the_boolean_mask_shows_a_cpu():
    """The kernel needs a GPU. Here its tables are expanded, as tests/gpu expands them there."""
    for name, _, documents in tables():
        full, partial = visited(name, documents)
        tokens = documents.shape[1]
        mask = to_block_mask(full, partial, visible(documents), tokens, 128)
        expected = expand(full | partial, documents, 128)[0, 0]
        assert torch.equal(shown_by_blocks(mask, tokens)[0], expected), name


def rising(rows, tokens, chance, padding=0):
    """Return documents of random lengths, each token beginning one with this chance."""
    begins = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(tokens)) < chance
    documents = begins.long().cumsum(dim=1)
    documents[0, tokens - padding :] = -1
    return documents


CASES = {
    "one document": (1024, None),
    "one document, and a last block that is not full": (1000, None),
    "less than a block": (20, None),
    "a document": (512, torch.zeros(2, 512, dtype=torch.int64)),
    "long documents": (2048, rising(4, 2048, 1 / 300)),
    "long documents that end inside a block": (2000, rising(3, 2000, 1 / 300)),
    "short documents": (640, rising(3, 640, 1 / 5)),
    "a document for each token": (300, torch.arange(300)[None]),
    "documents that begin with their blocks": (1024, torch.arange(1024)[None] // 256),
    "padding": (1024, rising(3, 1024, 1 / 200, padding=200)),
    "blocks of padding": (900, rising(2, 900, 1 / 200, padding=500)),
    "nothing but padding": (300, rising(2, 300, 1 / 200, padding=300)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_mask_has_the_tables_that_torch_makes_of_each_pair_of_tokens(name):
    tokens, documents = CASES[name]
    ours = block_mask(tokens, documents, torch.device("cpu"))
    require_torchs_tables(ours, None if documents is None else len(documents), tokens)


def require_torchs_tables(ours, rows, tokens):
    """Require the tables that torch makes of each pair of tokens."""
    theirs = create_block_mask(ours.mask_mod, rows, None, tokens, tokens, device="cpu")
    for table in (
        *("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"),
        *("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"),
    ):
        found, expected = getattr(ours, table), getattr(theirs, table)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), table
    assert ours.seq_lengths == theirs.seq_lengths == (tokens, tokens)
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE


def answers_to_prompts(prompts, answers):
    """Return documents and branches of a row: prompts with answers of these lengths."""
    pieces = [
        (document, branch, length)
        for document, prompt in enumerate(prompts)
        for branch, length in enumerate([prompt, *answers])
    ]
    documents, branches, lengths = torch.tensor([*pieces, (-1, 0, 37)]).unbind(dim=1)
    return documents.repeat_interleave(lengths), branches.repeat_interleave(lengths)


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ([30, 90], [20, 140, 300]),
        ([256], [128] * 4),
        ([0, 1, 700], [1, 200]),
        ([5] * 9, [9] * 7),
        ([0] * 3, [150]),
    ],
)
def test_answers_to_one_prompt_see_the_prompt_and_not_each_other(prompts, answers):
    rows = [answers_to_prompts(prompts, each) for each in (answers, answers[::-1])]
    documents, branches = (torch.stack(each) for each in zip(*rows, strict=True))
    tokens = documents.shape[1]
    same = documents[:, :, None] == documents[:, None]
    in_prompt, own = (branches == 0)[:, None], branches[:, :, None] == branches[:, None]
    expected = (same & (in_prompt | own)).tril()
    model = ModelConfig.preset("pion-small", **LONG)
    texts = model, documents, tokens, documents, branches
    found = [build_mask(*texts, flex=flex) for flex in (False, True)]
    assert torch.equal(found[0].allowed[:, 0], expected)
    assert torch.equal(shown_by_blocks(found[1].blocks, tokens), expected)
    torchs = create_block_mask(found[1].blocks.mask_mod, 2, None, tokens, tokens, device="cpu")
    assert found[1].blocks.sparsity() == torchs.sparsity()


def test_a_block_mask_hides_nothing_of_a_document_whose_number_comes_again():
    """Rows do not have such documents. If one had, more blocks would be visited, and none less."""
    documents = torch.tensor([[0] * 200 + [1] * 300 + [0] * 268])
    same = (documents[0][:, None] == documents[0]).tril()
    assert torch.equal(
        shown_by_blocks(block_mask(768, documents, torch.device("cpu")), 768)[0], same
    )


LONG = {"n_layers": 2, "vocab_size": 512, "seq_len": 65_536}
DAISY = {"wiring": {"attention_layers": [0], "skips": [[1, 0]]}, "values": {"layers": [0]}}
# A preset, rows, their tokens, and whether they are of documents.
BUILT = {
    "documents": (ModelConfig.preset("pion-small", **LONG), 1, 8192, True),
    "conversations": (ModelConfig.preset("pion-small", **LONG), 32, 2048, True),
    "documents in a long row": (ModelConfig.preset("pion-small", **LONG), 1, 65_536, True),
    "capped scores": (ModelConfig.preset("pion-small", softcap=50.0, **LONG), 1, 65_536, False),
    "windows": (ModelConfig.preset("daisy-pico", **LONG, **DAISY), 1, 65_536, True),
    "windows in tokens": (
        ModelConfig.preset("pion-small", **LONG, windows={"tokens": 1000, "block": 1}),
        *(1, 65_536, True),
    ),
    "slots": (ModelConfig.preset("lepton-small", **LONG), 1, 8192, True),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_mask_for_flex_attention_is_built_without_a_look_at_each_pair_of_tokens(name):
    model, rows, length, separate = BUILT[name]
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    documents = torch.zeros_like(tokens) if separate else None
    slots = model.slots
    entries = None if slots is None else entries_of(slots, None, documents, tokens)
    with LiveBytes("cpu", {}) as live:
        if slots is None or entries is None:
            build_masks(model, tokens, length, documents, kernel="flex")
        else:
            mask_of_rows(slots, entries, flex=True)
    assert 0 < max(live.history) < min(16 * 2**20, rows * length**2 // 16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("separate", [False, True], ids=["text", "documents"])
def test_flex_attention_judges_each_token_of_several_rows(separate):
    """Without torch.compile, flex attention asks mask_mod about every pair of tokens, in each row.

    It then ignores the tables, which the tests before expand.
    """
    torch.manual_seed(0)
    rows, tokens, block = 3, 512, 128
    own = torch.arange(tokens) * torch.arange(1, rows + 1)[:, None] // tokens
    documents = own if separate else None
    numbers = torch.zeros(1, tokens, dtype=torch.int64) if documents is None else documents
    visited = visited_blocks(numbers, 2, block)
    mask = to_block_mask(*visited, visible(documents), tokens, block)
    same = (numbers[:, :, None] == numbers[:, None]).tril()[:, None]
    query, key, value = torch.randn(3, rows, 2, tokens, 16)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=same)
    found = flex_attention(query, key, value, block_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def in_window(tokens, window, documents):
    """Return what the tokens of rows see through a window of so many tokens."""
    place = torch.arange(tokens)
    seen = (place <= place[:, None]) & (place > place[:, None] - window)
    return seen & (documents[:, :, None] == documents[:, None])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [1, 2, 100, 128, 129, 130, 257, 384, 511, 1000])
@pytest.mark.parametrize("tokens", [512, 700])
def test_a_window_of_an_exact_number_of_tokens_is_the_same_for_flex_attention(tokens, window):
    own = torch.tensor([[0] * 90 + [1] * 300 + [2] * 60 + [3] * 200 + [-1] * 50, [0] * 700])
    model = ModelConfig.preset("pion-small", **LONG, windows={"tokens": window, "block": 1})
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, tokens, 16)
    for documents in (own[:, :tokens], None):
        expected = in_window(tokens, window, own[1:, :tokens] if documents is None else documents)
        masks = [
            build_masks(model, row(tokens), tokens, documents, kernel=kernel)["long"]
            for kernel in ("dense", "flex")
        ]
        if masks[0].causal:
            assert window >= tokens
            assert masks[1].causal
            continue
        assert torch.equal(masks[0].allowed.view(-1, tokens, tokens), expected)
        assert torch.equal(shown_by_blocks(masks[1].blocks, tokens), expected)
        require_torchs_tables(masks[1].blocks, len(expected), tokens)
        dense = scaled_dot_product_attention(query, key, value, attn_mask=expected[:, None])
        found = flex_attention(query, key, value, block_mask=masks[1].blocks)
        torch.testing.assert_close(found, dense, rtol=0, atol=1e-5)


def test_every_fourth_layer_and_the_last_have_the_long_window():
    reaches = [reach_of(config(n_layers=8), layer)[0] for layer in range(8)]
    assert "".join(reaches) == "lssslssl"


def test_padding_and_rows_that_end_inside_a_block_keep_to_their_documents():
    documents = torch.tensor([[0] * 20 + [1] * 17 + [-1] * 4, [0] * 41])
    masks = build_masks(config(tokens=32), row(41), 41, documents)
    for mask in masks.values():
        same = documents[:, :, None] == documents[:, None]
        assert not (mask.allowed[:, 0] & ~same.tril()).any()
        assert mask.allowed[:, 0].diagonal(dim1=1, dim2=2).all()


def test_a_window_as_long_as_the_row_hides_nothing():
    masks = build_masks(config(tokens=128), row(50), 50, None)
    assert masks["long"].causal
    assert masks["long"].allowed is None


def test_training_may_see_less_than_the_model():
    masks = build_masks(config(tokens=64), row(64), 64, None, window=16)
    for mask in masks.values():
        assert int(mask.allowed.sum(dim=-1).max()) == 16


@pytest.mark.parametrize("reach", ["full", "long", "short"])
def test_mean_keys_are_the_keys_in_the_mask(reach):
    model = config(tokens=64)
    keys = torch.ones(256, 256).tril()
    if reach != "full":
        allowed = build_masks(model, row(256), 256, None)[reach].allowed
        keys = allowed[0, 0].float()
    # A token's own key counts half, as in seq_len / 2.
    assert mean_keys(model, reach, 256) == keys.sum(dim=1).mean().item() - 0.5
