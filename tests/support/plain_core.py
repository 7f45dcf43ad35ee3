"""A second scorer for CORE's rules: one row at a time, from the lines of a file, in few steps."""

import random

import torch


def plain_scores(model, tokenizer, task, lines):
    """Return for each item the mean nats of each option; of a text to continue, 0.0 if the model
    would write it, and else 1.0."""
    data = list(lines)
    random.Random(1337).shuffle(data)
    return [_item(model, tokenizer, task, data, number) for number in range(len(data))]


def _item(model, tokenizer, task, data, number):
    item = data[number]
    others = [i for i in range(len(data)) if i != number]
    drawn = random.Random(1234 + number).sample(others, task["num_fewshot"][0])
    delimiter = task.get("continuation_delimiter", " ")
    examples = "".join(_text(data[i], data[i].get("gold"), delimiter) + "\n\n" for i in drawn)
    options = range(len(item.get("choices") or item.get("context_options") or "1"))
    texts = [examples + _text(item, option, delimiter) for option in options]
    ids = [[tokenizer.before_document, *tokenizer.encode(text)] for text in texts]
    if "choices" in item:
        start = _common(ids)
        if start == min(map(len, ids)):  # the deviation that Pion counts as odd
            before = tokenizer.encode(examples + item["query"] + delimiter)
            start = min(_common([own, [tokenizer.before_document, *before]]) for own in ids)
        starts = [start for _ in ids]
    elif "context_options" in item:
        suffix = _common([own[::-1] for own in ids])
        starts = [max(1, len(own) - suffix) for own in ids]
    else:
        bare = (examples + item["context"].strip() + delimiter).rstrip()
        starts = [_common([ids[0], [tokenizer.before_document, *tokenizer.encode(bare)]])]
    rows = [_row(model, own, start) for own, start in zip(ids, starts, strict=True)]
    if "gold" in item:
        return [float(nats.mean()) for nats, _ in rows]
    return [0.0 if greedy else 1.0 for _, greedy in rows]


def _row(model, ids, start) -> tuple[torch.Tensor, bool]:
    """Return the nats of the tokens from `start` on, and whether all are the likeliest."""
    crop = max(0, len(ids) - model.config.seq_len)
    tokens = torch.tensor([ids[crop:]])
    with torch.no_grad():
        states = model.hidden(tokens)[0]
        logits = model.logits_in_fp32(states, model.config.vocab_size)[start - crop - 1 : -1]
    wanted = tokens[0, start - crop :]
    nats = -logits.double().log_softmax(dim=-1)[range(len(wanted)), wanted]
    return nats, bool((logits.argmax(dim=-1) == wanted).all())


def _text(item, option, delimiter):
    if "choices" in item:
        return str(item["query"] + delimiter + item["choices"][option])
    if "context_options" in item:
        return str(item["context_options"][option] + delimiter + item["continuation"])
    return str(item["context"].strip() + delimiter + item["continuation"])


def _common(sequences):
    place = 0
    while all(len(own) > place and own[place] == sequences[0][place] for own in sequences):
        place += 1
    return place
