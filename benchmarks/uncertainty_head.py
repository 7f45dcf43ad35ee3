"""Would a head know better than the probabilities when a model is wrong?

The head is u = σ(MLP(h)): one hidden layer on the frozen model's last hidden states, trained with
the Brier loss on rows of training text. It says how likely it is that the model's most likely token
is wrong. It is compared with 1 − max p on held-out rows, and with 1 − max p after three corrections
that are fitted on the same training rows:

  * `temperature`: logits over T;
  * `platt`: σ(a · log-odds of max p + b);
  * `isotonic`: the best rising function of max p.

The text is the prose of Python's standard library, split as in jobs/demo.yaml:

    pion run benchmarks/demo_muon.yaml
    python -m benchmarks.uncertainty_head base=runs/demo/checkpoints/pretrain/STEP \
        fine-tuned=models/demo

`head_with_max_p` also sees the log-odds of max p. `difference` is the Brier score minus that of
another, a mean over tokens with the standard error of paired rows. Negative is better. The result
is in benchmarks/results/uncertainty_head.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pion
from pion.data.documents.python_docs import documents, is_held_out
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.shares import ratio
from pion.model.decoder import Decoder

RESULT = Path(__file__).parent / "results" / "uncertainty_head.json"
HELD_OUT = 0.05  # as in jobs/demo.yaml
TRAIN_ROWS, CHOICE_ROWS = 2400, 240  # the last ones choose the epoch of the head
ROWS_AT_ONCE = 16
TEMPERATURES = [round(0.80 + 0.04 * i, 2) for i in range(11)]
HIDDEN, RATE, EPOCHS, TOKENS_AT_ONCE, SEEDS = 256, 1e-3, 6, 2048, 3


@dataclass(frozen=True)
class Seen:
    """What a model computes for N tokens, in rows of equal length.

    Attributes:
        states: the last hidden states, (N, d_model).
        wrong: 1 where the likeliest token is not the next one.
        top: the largest probability at each of TEMPERATURES, (temperatures, N).
    """

    states: Tensor
    wrong: Tensor
    top: Tensor
    length: int

    @property
    def max_p(self) -> Tensor:
        return self.top[TEMPERATURES.index(1.0)]

    def part(self, rows: slice) -> Seen:
        """Return some of the rows."""
        here = slice(*(None if at is None else at * self.length for at in (rows.start, rows.stop)))
        return Seen(self.states[here], self.wrong[here], self.top[:, here], self.length)


def rows_of_text(tokenizer: Tokenizer, length: int, *, held_out: bool) -> Tensor:
    """Return rows of text, (rows, length + 1)."""
    ids: list[int] = []
    for document in documents():
        if is_held_out(document.origin, HELD_OUT) == held_out:
            ids += [tokenizer.end_of_text, *tokenizer.encode(document.text)]
    whole = torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)])
    return whole.view(-1, length + 1)


@torch.no_grad()
def look(model: Decoder, rows: Tensor, vocab_size: int) -> Seen:
    """Return what `model` computes for `rows`, over the ids that the tokenizer can produce."""
    states, wrong, top = [], [], []
    for some in rows.split(ROWS_AT_ONCE):
        hidden = model.hidden(some[:, :-1]).flatten(0, 1)
        logits = model.logits_in_fp32(hidden, vocab_size)
        best = logits.max(dim=-1)
        below = logits - best.values[:, None]
        top.append(torch.stack([1 / (below / t).exp_().sum(dim=-1) for t in TEMPERATURES]))
        states.append(hidden)
        wrong.append((best.indices != some[:, 1:].flatten()).float())
    return Seen(torch.cat(states), torch.cat(wrong), torch.cat(top, dim=1), rows.shape[1] - 1)


def brier(uncertainty: Tensor, seen: Seen) -> np.ndarray:
    """Return the squared errors, summed over each row."""
    squares = (uncertainty.double() - seen.wrong.double()) ** 2
    return squares.view(-1, seen.length).sum(dim=1).numpy()


# ---------------------------------------------------------------- corrections of max p

Correction = Callable[[Seen], Tensor]


def temperature(train: Seen) -> tuple[float, Correction]:
    """Return the temperature with the lowest Brier score on `train`, and 1 − max p at it."""
    scores = [((1 - top - train.wrong) ** 2).mean() for top in train.top]
    best = int(torch.stack(scores).argmin())
    return TEMPERATURES[best], lambda seen: 1 - seen.top[best]


def platt(train: Seen) -> Correction:
    """Return 1 − σ(a · log-odds of max p + b), with the lowest Brier score on `train`."""
    weights = torch.tensor([1.0, 0.0], requires_grad=True)

    def corrected(seen: Seen) -> Tensor:
        return 1 - torch.sigmoid(weights[0] * seen.max_p.logit(eps=1e-6) + weights[1])

    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((corrected(train) - train.wrong) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda seen: corrected(seen).detach()


def isotonic(train: Seen) -> Correction:
    """Return the falling function of max p with the lowest Brier score on `train`."""
    order = train.max_p.argsort()
    x, y = train.max_p[order].double().numpy(), train.wrong[order].double().numpy()
    levels: list[tuple[float, int]] = []  # of tokens in order: their mean, and how many
    for value in y:
        mean, count = float(value), 1
        while levels and levels[-1][0] <= mean:  # pool adjacent violators
            before, more = levels.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        levels.append((mean, count))
    ends = np.cumsum([count for _, count in levels]) - 1
    middles = np.concatenate(([0], ends[:-1] + 1)) / 2 + ends / 2
    places = x[middles.astype(int)]
    means = np.array([mean for mean, _ in levels])
    return lambda seen: torch.from_numpy(np.interp(seen.max_p.double().numpy(), places, means))


# ---------------------------------------------------------------- the head


class Head(nn.Module):
    """u = σ(MLP(h)), optionally with the log-odds of max p as one more input."""

    def __init__(self, d_model: int, *, sees_max_p: bool) -> None:
        super().__init__()
        self.sees_max_p = sees_max_p
        self.norm = nn.LayerNorm(d_model)
        self.hidden = nn.Linear(d_model + sees_max_p, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, states: Tensor, max_p: Tensor) -> Tensor:
        x = self.norm(states)
        if self.sees_max_p:
            x = torch.cat((x, max_p.logit(eps=1e-6)[:, None]), dim=1)
        return torch.sigmoid(self.out(torch.nn.functional.gelu(self.hidden(x)))).squeeze(1)


@torch.no_grad()
def uncertainty(head: Head, seen: Seen) -> Tensor:
    """Return what the head says of each token."""
    return torch.cat([head(*some) for some in _batches(seen)])


def _batches(seen: Seen) -> Iterator[tuple[Tensor, Tensor]]:
    at_once = 16 * TOKENS_AT_ONCE
    yield from zip(seen.states.split(at_once), seen.max_p.split(at_once), strict=True)


def train_head(train: Seen, choice: Seen, seed: int, *, sees_max_p: bool) -> tuple[Head, int]:
    """Return the head of the epoch with the lowest Brier score on `choice`, and that epoch."""
    torch.manual_seed(seed)
    head = Head(train.states.shape[1], sees_max_p=sees_max_p)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(train.wrong) // TOKENS_AT_ONCE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    for epoch in range(1, EPOCHS + 1):
        for some in torch.randperm(len(train.wrong)).split(TOKENS_AT_ONCE):
            loss = ((head(train.states[some], train.max_p[some]) - train.wrong[some]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        score = float(brier(uncertainty(head, choice), choice).sum() / len(choice.wrong))
        if best is None or score < best[0]:
            best = score, epoch, {name: each.clone() for name, each in head.state_dict().items()}
    assert best is not None
    head.load_state_dict(best[2])
    return head, best[1]


# ---------------------------------------------------------------- the comparison


def compare(found: dict[str, np.ndarray], seen: Seen) -> dict[str, Any]:
    """Return each side's Brier score, and its difference from max p and from each correction."""
    sizes = np.full(len(seen.wrong) // seen.length, seen.length)
    others = ("max_p", "temperature", "platt", "isotonic")
    report: dict[str, Any] = {}
    for name, squares in found.items():
        value, error = ratio(squares, sizes)
        report[name] = {"brier": round(value, 5), "sem": round(error, 5), "difference": {}}
        for other in others:
            if other != name:
                more, sem = ratio(squares - found[other], sizes)
                report[name]["difference"][other] = {
                    "mean": round(more, 6),
                    "sem": round(sem, 6),
                    "errors": round(more / sem, 1) if sem else None,
                }
    return report


def measure(folder: str) -> dict[str, Any]:
    """Return the comparison for the model in `folder`."""
    model, tokenizer = pion.load(folder)
    assert tokenizer is not None
    length = model.config.seq_len
    rows = rows_of_text(tokenizer, length, held_out=False)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:TRAIN_ROWS]]
    known = look(model, rows, tokenizer.vocab_size)
    train, choice = known.part(slice(-CHOICE_ROWS)), known.part(slice(-CHOICE_ROWS, None))
    held_out_rows = rows_of_text(tokenizer, length, held_out=True)
    held_out = look(model, held_out_rows, tokenizer.vocab_size)
    best, at_temperature = temperature(known)
    found = {
        "max_p": brier(1 - held_out.max_p, held_out),
        "temperature": brier(at_temperature(held_out), held_out),
        "platt": brier(platt(known)(held_out), held_out),
        "isotonic": brier(isotonic(known)(held_out), held_out),
    }
    epochs: dict[str, list[int]] = {}
    for sees_max_p in (False, True):
        name = "head_with_max_p" if sees_max_p else "head"
        for seed in range(SEEDS):
            head, epoch = train_head(train, choice, seed, sees_max_p=sees_max_p)
            found[f"{name}_{seed}"] = brier(uncertainty(head, held_out), held_out)
            epochs.setdefault(name, []).append(epoch)
            print(f"{folder}: {name}, seed {seed}: epoch {epoch}", flush=True)
    return {
        "train_tokens": len(known.wrong),
        "held_out_tokens": len(held_out.wrong),
        "held_out_rows": len(held_out_rows),
        "temperature": best,
        "epochs": epochs,
        "mean_uncertainty": round(1 - float(held_out.max_p.double().mean()), 5),
        "wrong": round(float(held_out.wrong.double().mean()), 5),
        "held_out": compare(found, held_out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="NAME=FOLDER of each model")
    models = dict(each.split("=", 1) for each in parser.parse_args().models)
    report = {name: measure(folder) for name, folder in models.items()}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
