"""The rules by which `pion new` proposes a model and its training. docs/new-rules.md explains them.

Each rule is a plain function. The sources of the numbers are in docs/sizing.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from pion.garbage_collection import importing

# Compute is spent best at about so many tokens for each parameter.
TOKENS_PER_PARAMETER = 20
# So often may the same text be read: more teaches little.
MOST_EPOCHS = 4.0
# With fewer tokens of own text, start from a trained model.
LEAST_TOKENS = 5_000_000
# The presets, the largest first: their largest vocabulary, and tokens in a step (as in jobs/).
PRESETS: dict[str, tuple[int, int]] = {
    "pion2-max-xl": (32_768, 524_288),
    "pion2-max-large": (32_768, 262_144),
    "pion2-max-base": (32_768, 131_072),
    "pion2-max-small": (32_768, 131_072),
    "pion2-max-micro": (32_768, 131_072),
    "pion2-max-nano": (16_384, 131_072),
}
LARGEST, SMALLEST = "pion2-max-xl", "pion2-max-nano"
# By bytes of text, the size of a vocabulary; and by vocabulary, the bytes of a token (measured).
VOCABULARIES = ((10**9, 32_768), (10**8, 16_384), (10**7, 8_192), (10**6, 4_096), (0, 2_048))
BYTES_PER_TOKEN = {2_048: 3.0, 4_096: 3.4, 8_192: 3.75, 16_384: 3.95, 32_768: 4.05}
# Of a model that others trained, unless its tokenizer can be tried on the data.
BASE_BYTES_PER_TOKEN = 4.0
# The rate at which a model of others continues on text, and the rows of its batch.
BASE_RATE, BASE_ROWS = 1e-4, 32
# The rate of conversations after a pretraining of one's own.
OWN_CHAT_RATE = 1e-4
# With fewer parameters, a start learns at the rates of the demos: the defaults teach it nothing.
SMALL = 10_000_000
SMALL_RATES = {"pretrain": 1e-3, "sft": 1e-3, "prefer": 3e-5, "reinforce": 1e-4}
ROW_LENGTHS = (2048, 1024, 512, 256, 128)
# With fewer steps, the batch is halved, down to so many rows.
LEAST_STEPS, LEAST_ROWS = 1000, 8
# Passes over conversations, and over text by a model that others trained.
PASSES = 3.0
# The lengths of rows of preferences. A row takes both answers of so many, with their prompts.
MOST_FIT, PAIR_ROW_LENGTHS = 0.99, (4096, 2048, 1024, 512, 256)
# A step has about so many pairs, as in published recipes; fewer if that gives fewer steps.
PAIRS, LEAST_PAIRS, PAIR_STEPS = 64, 8, 30
MOST_PAIR_ROWS = 32
# A batch of conversations has at most so many rows, and there are at least so many steps.
CHAT_ROWS, CHAT_STEPS = 16, 30
# A step of rewards has so many prompts, and there are at least so many steps.
PROMPTS, REWARD_STEPS = 16, 100
# By the stage, what fits a row, and what becomes of the rest.
WHY_ROWS = {
    "sft": ("19 of 20 conversations fit", "longer conversations are cut"),
    "prefer": ("99 of 100 preferences fit", "longer ones are left out"),
}
# Of many records, so much is held out.
HELD_OUT = {"sft": 0.01, "prefer": 0.02, "reinforce": 0.02}
# A base with more parameters is fine-tuned with LoRA.
LORA_FROM = 500_000_000
# What is proposed where the person names no model to start from: (Instruct, base) by language.
ENGLISH_BASES = ("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-360M")
OTHER_BASES = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B")
# A template writes so many bytes around each conversation.
TEMPLATE_BYTES = 60


@dataclass(frozen=True)
class Amount:
    """How much there is to learn from: of documents, or of conversations and preferences.

    Attributes:
        bytes: of all of them, as UTF-8.
        count: how many there are.
        long: the bytes that 90 % do not exceed; of preferences, 99 %.
    """

    bytes: int
    count: int
    long: int


@dataclass(frozen=True)
class StartModel:
    """The model that training starts from: a base of so many parameters and tokens of context.

    `bytes_per_token` is how its tokenizer does on the data.
    """

    parameters: int | None
    context: int
    bytes_per_token: float = BASE_BYTES_PER_TOKEN

    def rate(self, stage: str, otherwise: float | None = None) -> float | None:
        """Return the rate at which it learns in a stage."""
        return SMALL_RATES[stage] if (self.parameters or SMALL) < SMALL else otherwise


@dataclass(frozen=True)
class Stage:
    """What the stages of a job have in common."""

    seq_len: int
    global_batch: int
    held_out: float
    lr: float | None  # None: by a recipe, or the default
    why_rows: str  # why `seq_len`

    def holding_out(self, share: float) -> Self:
        """Return the stage with at least this share held out."""
        return replace(self, held_out=max(share, self.held_out))


@dataclass(frozen=True)
class Pretraining(Stage):
    """A pretraining stage, by itself of a base with the rate `lr`."""

    own_tokens: int  # of the text, read once
    tokens: int

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // (self.global_batch * self.seq_len))

    @property
    def epochs(self) -> float:
        """How often the text is read."""
        return self.tokens / max(1, self.own_tokens)


@dataclass(frozen=True)
class FromRandom(Pretraining):
    """The pretraining of a preset with random weights, by the recipe of Pion 2."""

    preset: str
    vocab_size: int
    parameters: int


@dataclass(frozen=True)
class FineTuning(Stage):
    """A stage of conversations, preferences or rewards.

    Attributes:
        name: the name of the stage.
        rows: about how many rows there are.
        fits: whether a row has room for almost all records.
        sides: how many answers a record has.
    """

    name: str
    rows: int
    epochs: float
    lora: bool
    fits: bool
    sides: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps, about."""
        return max(1, math.ceil(self.epochs * self.rows / self.global_batch))

    def of_rows(self, rows: int, count: int) -> FineTuning:
        """Return the stage for so many rows, which have `count` records."""
        batch, epochs = PROMPTS, 1.0
        if self.name == "reinforce":
            epochs = max(1.0, math.ceil(REWARD_STEPS * PROMPTS / rows))
        elif self.name == "prefer":
            batch, per_row = 1, max(1.0, count / rows)
            while batch < MOST_PAIR_ROWS and 2 * batch * per_row <= 1.5 * PAIRS:
                batch *= 2
            while batch > 1 and rows / batch < PAIR_STEPS and batch * per_row > LEAST_PAIRS:
                batch //= 2
        else:
            epochs, most = PASSES, int(PASSES * rows / CHAT_STEPS)
            batch = min(CHAT_ROWS, 1 << (most.bit_length() - 1) if most else 1)
        return replace(self, rows=rows, global_batch=batch, epochs=epochs)


def default_base(texts: Amount, chats: Amount, *, english: bool) -> str | None:
    """Return the model to start from where the person names none; None: start from random weights.

    Conversations alone need a model that can talk, and little text one that knows its language.
    """
    instruct, base = ENGLISH_BASES if english else OTHER_BASES
    if not texts.bytes:
        return instruct
    own = texts.bytes / BYTES_PER_TOKEN[vocabulary(texts.bytes, LARGEST)]
    return None if own >= LEAST_TOKENS else (instruct if chats.count else base)


def vocabulary(text_bytes: int, preset: str) -> int:
    """Return the size of the vocabulary for so much text, at most what suits the preset."""
    by_text = next(size for least, size in VOCABULARIES if text_bytes >= least)
    return min(by_text, PRESETS[preset][0])


def pretrainings(texts: Amount, *, stock: bool = False) -> Iterator[FromRandom]:
    """Yield the presets that the text suffices for, the largest first, and at last the smallest;
    with `stock`, their twins that llama.cpp and vLLM run.

    The text suffices if it gives 20 tokens for each parameter in at most four passes.
    """
    with importing():
        from pion.config.model_config import ModelConfig
        from pion.model.params_and_flops import cost_of

    for preset, (_, batch_tokens) in PRESETS.items():
        vocab_size = vocabulary(texts.bytes, preset)
        named = preset.replace("-max", "") if stock else preset
        parameters = cost_of(ModelConfig.preset(named, vocab_size=vocab_size)).all_params
        own = int(texts.bytes / BYTES_PER_TOKEN[vocab_size])
        wanted, most = TOKENS_PER_PARAMETER * parameters, int(MOST_EPOCHS * own)
        if wanted <= most or preset == SMALLEST:
            held_out, seq_len, why = _text_rows(texts, own)
            tokens = min(wanted, most)
            batch = _batch(tokens, seq_len, batch_tokens // seq_len, own * (1 - held_out))
            yield FromRandom(
                seq_len, batch, held_out, None, why, own, tokens, named, vocab_size, parameters
            )


def continued(texts: Amount, start: StartModel) -> Pretraining:
    """Return how a base continues to be pretrained on text."""
    own = int(texts.bytes / start.bytes_per_token)
    held_out, seq_len, why = _text_rows(texts, own, start.context)
    tokens = int(PASSES * own)
    batch = _batch(tokens, seq_len, BASE_ROWS, own * (1 - held_out))
    rate = start.rate("pretrain", BASE_RATE)
    return Pretraining(seq_len, batch, held_out, rate, why, own, tokens)


def _text_rows(texts: Amount, own: int, context: int = ROW_LENGTHS[0]) -> tuple[float, int, str]:
    """Return the held-out share, a row as long as nine of ten documents, at most 2,048 tokens, and
    why the row is so long.

    Five documents are held out at least, where that is at most a tenth, and rows are short enough
    that there are 128, four of them held out.
    """
    held_out = min(0.1, max(0.02 if own > 10**7 else 0.05, 5 / max(1, texts.count)))
    wanted = texts.long / BASE_BYTES_PER_TOKEN
    fitting = [
        n for n in ROW_LENGTHS if n <= context and 4 * n <= held_out * own and 128 * n <= own
    ]
    longest = max(fitting, default=min(context, ROW_LENGTHS[-1]))
    seq_len = min((n for n in fitting if n >= wanted), default=longest)
    if seq_len >= wanted:
        return held_out, seq_len, "nine of ten documents are no longer"
    if seq_len >= min(context, ROW_LENGTHS[0]):
        return held_out, seq_len, "the most that is proposed; many documents are longer"
    return held_out, seq_len, "short, so that the little text fills enough of them"


def _batch(tokens: int, seq_len: int, rows: int, own: float) -> int:
    """Return the rows of a batch: fewer if the steps were few or if the text has not so many."""
    while rows > LEAST_ROWS and tokens // (rows * seq_len) < LEAST_STEPS:
        rows //= 2
    while rows > 1 and rows * seq_len > own / 2:
        rows //= 2
    return rows


def fine_tuning(
    name: str, records: Amount, start: StartModel | None, sides: int = 1, needed: int = 0
) -> FineTuning:
    """Return how a stage learns from records of so many sides, by a base or after pretraining.

    `needed` is how many ids of a row almost all records need, once that was tried; 0: it follows
    from their bytes.
    """
    context = ROW_LENGTHS[0] if start is None else start.context
    per_token = BYTES_PER_TOKEN[4_096] if start is None else start.bytes_per_token
    around, count = sides * TEMPLATE_BYTES, records.count
    every = PAIR_ROW_LENGTHS if name == "prefer" else ROW_LENGTHS
    lengths = [n for n in every if n <= sides * context] or [sides * context]
    wanted = needed or (records.long + around) / per_token * 1.1
    seq_len = min((n for n in lengths if n >= wanted), default=lengths[0])
    share = min(0.3, max(0.1, 5 / max(1, count)))
    if count >= 500:
        share = 0.05 if count < 5000 else HELD_OUT[name]
    rows = (records.bytes + around * count) / per_token / seq_len * 1.05
    if name == "reinforce":  # a row is a prompt
        seq_len, rows = context, count
    (why, longer), fits = WHY_ROWS.get(name, ("", "")), seq_len >= wanted
    why = why if fits else f"the most that is proposed; {longer}"
    rate = OWN_CHAT_RATE if start is None else start.rate(name)
    large = start is not None and (start.parameters or 0) > LORA_FROM
    stage = FineTuning(seq_len, 1, share, rate, why, name, 1, 1.0, large, fits, sides)
    return stage.of_rows(max(1, round(rows * (1 - share))), count)


def shortened(stage: Pretraining, share: float) -> Pretraining:
    """Return the stage with this share of its tokens, so that it costs about this share."""
    tokens = max(stage.global_batch * stage.seq_len, int(stage.tokens * share))
    return replace(stage, tokens=tokens)


def fewer_passes(stage: FineTuning, share: float) -> FineTuning:
    """Return the stage with this share of its passes, so that it costs about this share."""
    return replace(stage, epochs=max(0.01, round(stage.epochs * share, 2)))
