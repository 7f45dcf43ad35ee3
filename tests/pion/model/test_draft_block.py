"""A draft block learns to guess the tokens after the next one, and changes nothing in its model."""

import pytest
import torch
from torch.nn.functional import cross_entropy, embedding, linear, rms_norm, silu

from pion.errors import BadInput
from pion.formats.load import load_decoder
from pion.formats.weights import write_safetensors
from pion.model.decoder import Decoder
from pion.model.draft_block import DraftBlock, block_of, most_frequent
from pion.model.forward_pass import AS_THE_MODEL, Given, Passed
from pion.model.loss import Cap, cap_logits, linear_cross_entropy
from pipeline.state.record_json import to_json
from tests.families.families import DAISY, EXPERTS, PILON, SEQ_LEN, VOCAB, Family

ROWS, STEPS = 2, 3
DRAFT = {"steps": STEPS, "ids": 40}
TOKENS = torch.randint(0, VOCAB, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(1))
TARGETS = TOKENS.roll(-1, dims=1)
# In each row two documents, and padding behind them.
ENDS = [(20, 41), (13, SEQ_LEN)]
DOCUMENTS = torch.full_like(TOKENS, -1)
for row, (first, second) in enumerate(ENDS):
    DOCUMENTS[row, :first], DOCUMENTS[row, first:second] = 0, 1
POSITIONS = torch.arange(SEQ_LEN).expand(ROWS, -1)

MODELS = {"pion": {}, "learned positions": PILON, "experts": {"experts": EXPERTS}, "daisy": DAISY}
each_model = pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)


def drafted(fields, **draft):
    """Return a model of random weights and norm gains whose block guesses random ids."""
    model = Family(fields).decoder(draft=DRAFT | draft)
    ids = block_of(model).ids
    if ids is not None:
        some = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(2))
        ids.copy_(some[: len(ids)].sort().values)
    return model


def loss_of(model, states, documents, targets):
    """Return the loss of the model's block, and its report of each step."""
    given = Given(TOKENS, POSITIONS, documents)
    passed = Passed(given, targets, states, AS_THE_MODEL, linear_cross_entropy)
    with torch.enable_grad():  # else a block does not learn, and has no loss
        (loss,), report = block_of(model).losses(model, passed)
    return loss.detach(), report["draft_loss"]


def normed(x, eps):
    return rms_norm(x, x.shape[-1:], None, eps)


def plain_losses(model, states, documents, targets):
    """Return the cross-entropies of each step, one guess at a time: as the formulas say it."""
    weights, config = model.state_dict(), model.config
    ids = block_of(model).ids
    guessed = list(range(VOCAB)) if ids is None else ids.tolist()
    head = weights["embed.weight" if config.tie_embeddings else "lm_head.weight"][guessed]
    found = [[] for _ in range(STEPS)]
    for row in range(ROWS):
        for t in range(SEQ_LEN):
            g = states[row, t]
            for k in range(1, STEPS + 1):
                if t + k >= SEQ_LEN:
                    break
                if documents is not None and documents[row, t + k] != documents[row, t]:
                    break
                known = embedding(TOKENS[row, t + k], weights["embed.weight"])
                both = torch.cat([normed(g, config.norm_eps), normed(known, config.norm_eps)])
                z = linear(both, weights["draft.mix.weight"])
                gate, up, down = (
                    weights[f"draft.feedforward.{name}_proj.weight"]
                    for name in ("gate", "up", "down")
                )
                x = normed(z, config.norm_eps)
                g = z + linear(silu(linear(x, gate)) * linear(x, up), down)
                logits = linear(model.norm(g), head)
                if config.logit_cap is not None:
                    logits = cap_logits(logits, Cap(config.logit_cap))
                if (wanted := int(targets[row, t + k])) in guessed:
                    found[k - 1].append(cross_entropy(logits, torch.tensor(guessed.index(wanted))))
    return found


@each_model
@pytest.mark.parametrize("ids", [40, None])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["text", "documents"])
@torch.no_grad()
def test_the_loss_is_the_mean_of_what_each_guess_costs(fields, ids, documents):
    """No guess is for another document, for padding, or for an id that is not guessed."""
    model = drafted(fields, ids=ids)
    targets = TARGETS if documents is None else TARGETS.where(documents >= 0, -100)
    states = model.hidden(TOKENS, positions=POSITIONS, documents=documents)
    loss, of_steps = loss_of(model, states, documents, targets)
    expected = plain_losses(model, states, documents, targets)
    assert all(len(step) > 3 for step in expected)
    means = torch.stack([torch.stack(step).mean() for step in expected])
    torch.testing.assert_close(of_steps, means)
    total = sum(torch.stack(step).sum() for step in expected)
    torch.testing.assert_close(loss, total / (SEQ_LEN * STEPS))


def test_a_row_of_one_token_has_nothing_to_guess():
    losses = drafted({}).losses(TOKENS[:, :1], TARGETS[:, :1])
    assert losses.aux == 0
    assert losses.stats["draft_loss"].tolist() == [0.0] * STEPS


def test_nothing_is_guessed_where_nobody_learns():
    with torch.no_grad():
        assert "draft_loss" not in drafted({}).losses(TOKENS, TARGETS).stats
    frozen = drafted({})
    block_of(frozen).requires_grad_(False)  # as under LoRA
    assert "draft_loss" not in frozen.losses(TOKENS, TARGETS).stats


@each_model
def test_a_model_learns_the_same_with_and_without_a_block(fields):
    model = drafted(fields)
    weights = {n: t for n, t in model.state_dict().items() if not n.startswith("draft.")}
    plain = Decoder.from_state(Family(fields).config(), weights)
    gradients = []
    for each in (model, plain):
        each.requires_grad_(True)
        losses = each.losses(TOKENS, TARGETS, positions=POSITIONS, documents=DOCUMENTS)
        (losses.ce + losses.aux).backward()
        gradients.append({n: w.grad for n, w in each.named_parameters() if w.grad is not None})
    own = gradients[0].keys() - gradients[1].keys()
    assert own == {f"draft.{name}" for name in DraftBlock.roles}
    assert all(gradients[0][name].any() for name in own)
    for name, gradient in gradients[1].items():
        assert torch.equal(gradient, gradients[0][name]), name


@each_model
@torch.no_grad()
def test_guesses_are_the_likeliest_ids_one_after_the_other(fields):
    model = drafted(fields)
    block = block_of(model)
    trunk = block.trunk(model)
    assert block.ids is not None
    g, tokens = model.hidden(TOKENS)[:, -2], TOKENS[:, -1]
    guesses = block.guess(g, tokens, trunk, 2)
    for k in range(2):
        g = block(g, tokens, trunk)
        tokens = block.ids[model.logits(model.norm(g))[:, block.ids].argmax(dim=1)]
        assert tokens.tolist() == [guess[k] for guess in guesses]
    assert [len(guess) for guess in block.guess(g, tokens, trunk, 16)] == [STEPS] * ROWS


# ---------------------------------------------------------------- the ids that are guessed


@pytest.mark.parametrize(
    ("tokens", "count", "ids"),
    [
        ([5, 5, 5, 2, 2, 7], 2, [2, 5]),
        ([5, 5, 7, 7, 0, 0], 2, [0, 5]),  # of equals, the lower ids
        ([3], 3, [0, 1, 3]),  # ids that are not there come last
    ],
)
def test_the_most_frequent_ids_are_guessed(tokens, count, ids):
    assert most_frequent(torch.tensor(tokens), count, 8).tolist() == ids


def twice(ids):
    return ids[:1].expand(len(ids))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ids: ids.flip(0), "not 40 rising ids of 0 … 319"),
        (twice, "not 40 rising ids of 0 … 319"),
        (lambda ids: ids - 40, "not 40 rising ids of 0 … 319"),
        (lambda ids: ids + VOCAB - 39, "not 40 rising ids of 0 … 319"),
        (lambda ids: ids[:-1], r"draft\.ids"),
        (lambda ids: ids.float(), r"draft\.ids is not an array of torch\.int64"),
        (lambda ids: None, r"draft\.ids"),
    ],
)
def test_other_ids_in_a_file_are_refused(tmp_path, damage, message):
    model = Family({}).decoder(draft=DRAFT)
    damaged = damage(torch.arange(40))
    state = {name: t for name, t in model.state_dict().items() if name != "draft.ids"}
    state |= {} if damaged is None else {"draft.ids": damaged.contiguous()}
    (tmp_path / "config.json").write_text(to_json(model.config.to_dict()), encoding="utf-8")
    write_safetensors(tmp_path / "model.safetensors", state, {})
    with pytest.raises(BadInput, match=message):
        load_decoder(tmp_path)
