"""Tiny tokenizers in the layouts of the real files of GPT-2, SmolLM2, Llama 3, Qwen and others."""

import json
from functools import cache

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pion.data.tokens.safe_cuts import SPLITS
from pion.data.tokens.token_bytes import byte_of_letter
from pion.data.tokens.tokenizer import Tokenizer

TEXT = [
    "Return the number of items in the list.\n\nRaise ValueError if the key isn't there.\n",
    "def f(x):\n    return x + 1234  # naïve café ☕ 東京 कि\n",
    "You are a helpful assistant. user system assistant think tool_call\n\nHello! How are you?\n",
] * 4
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ALL_BYTES = {**BYTES, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}

# The bytes that SmolLM2's vocabulary lacks.
SMOLLM2_LACKS = bytes([*b"\x04\x06\x13\x14\x16\x1d\xc0\xc1\xf1\xf2", *range(0xF5, 0x100)])


def split(expression):
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(content, number, *, special=True):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


# By kind, how a text is cut before BPE.
PRE_TOKENIZERS = {
    "gpt2": BYTES,
    "smollm2": sequence(DIGITS, BYTES),
    "llama3": sequence(split(SPLITS["Llama 3"]), ALL_BYTES),
    "qwen": sequence(split(SPLITS["Qwen"]), ALL_BYTES),
    "harmony": sequence(split(SPLITS["Llama 3"]), ALL_BYTES),
    "deepseek": sequence(split(SPLITS["Llama 3"]), ALL_BYTES),
    "phi4": sequence(split(SPLITS["GPT-4o"]) | {"behavior": "Removed", "invert": True}, ALL_BYTES),
    "tekken": sequence(split(SPLITS["Tekken"]), ALL_BYTES),
}
KINDS = ("gpt2", "smollm2", "llama3", "qwen", "phi4", "tekken")
# BPE of pieces: without a space before a text, with one before each text between special tokens,
# and with one before the first.
PIECES = ("gemma", "llama2", "mistral")
TO_PIECES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PIECE_STEPS = {
    "gemma": {
        "normalizer": TO_PIECES,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
    "llama2": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, TO_PIECES],
        },
        "pre_tokenizer": None,
    },
    "mistral": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        },
    },
}
# By kind, the special tokens.
SPECIALS = {
    "gpt2": ("<|endoftext|>",),
    "smollm2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"),
    "llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|reserved_special_token_0|>",
    ),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "harmony": (
        *("<|endoftext|>", "<|start|>", "<|end|>"),
        *("<|message|>", "<|channel|>", "<|return|>"),
    ),
    "deepseek": ("<｜begin｜>", "<｜end｜>"),
    "phi4": ("<|endoftext|>",),
    "tekken": ("<s>", "</s>"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "llama2": ("<unk>", "<s>", "</s>"),
    "mistral": ("<unk>", "<s>", "</s>"),
}
# Tokens that are added, but not special: Qwen's and DeepSeek's.
PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
PLAIN_BY_KIND = {
    "qwen": PLAIN,
    "deepseek": ("<｜User｜>", "<｜Assistant｜>", "<｜call｜>", "<｜output｜>"),
}
# By kind, tokenizer_config.json and generation_config.json; ids are written as texts.
CONFIGS = {
    "gpt2": {"eos_token": "<|endoftext|>"},
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "harmony": {"eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    "deepseek": {"bos_token": "<｜begin｜>", "eos_token": "<｜end｜>"},
    "phi4": {"eos_token": "<|endoftext|>"},
    "tekken": {"eos_token": "</s>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
STOPS = {
    "gpt2": ("<|endoftext|>",),
    "smollm2": ("<|im_end|>",),
    "llama3": ("<|end_of_text|>", "<|eot_id|>"),
    "qwen": ("<|im_end|>", "<|endoftext|>"),
    "harmony": ("<|return|>",),
    "deepseek": ("<｜end｜>",),
    "phi4": ("<|endoftext|>",),
    "tekken": ("</s>",),
    "gemma": ("<eos>", "<end_of_turn>"),
    "llama2": ("</s>",),
    "mistral": ("</s>",),
}


@cache
def _trained(kind):
    empty = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
    settings = empty | {"pre_tokenizer": PRE_TOKENIZERS[kind]}
    bpe = tokenizers.Tokenizer.from_str(json.dumps(settings))
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = list(SPECIALS[kind]) if kind in ("gpt2", "smollm2", "phi4", "tekken") else []
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT, trainer)
    return bpe.to_str()


@cache
def _trained_pieces(kind):
    bpe = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    names = list(SPECIALS[kind])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, limit_alphabet=60, show_progress=False
    )
    bpe.train_from_iterator(TEXT, trainer)
    return bpe.to_str()


def _settings_of_pieces(kind):
    settings = json.loads(_trained_pieces(kind)) | PIECE_STEPS[kind]
    vocab = settings["model"]["vocab"]
    for text in (*(f"<0x{byte:02X}>" for byte in range(256)), "\n\n", "▁▁▁"):
        vocab.setdefault(text, len(vocab))
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind == "gemma":  # runs of newlines and spaces are added, and images have no row
        plain = (added(text, vocab[text], special=False) for text in ("\n\n", "▁▁▁"))
        settings["added_tokens"] += [*plain, added("<image_soft_token>", len(vocab))]
    else:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    settings["decoder"] = {"type": "Sequence", "decoders": steps}
    first = CONFIGS[kind]["bos_token"]
    settings["post_processor"] = starting(vocab[first], token=first)
    return settings


def settings_of(kind, **changes):
    """Return the tokenizer.json of a kind, with some keys replaced."""
    if kind in PIECES:
        return _settings_of_pieces(kind) | changes
    settings = json.loads(_trained(kind))
    settings["decoder"] = BYTES
    after = len(settings["model"]["vocab"])
    if kind == "llama3":
        settings["model"]["ignore_merges"] = True
        settings["added_tokens"] = [added(t, after + n) for n, t in enumerate(SPECIALS[kind])]
        settings["post_processor"] = {"type": "Sequence", "processors": [BYTES, starting(after)]}
    if kind in ("qwen", "harmony", "deepseek"):
        # DeepSeek has a list of no normalizers.
        none = {"type": "Sequence", "normalizers": []}
        settings["normalizer"] = {"type": "NFC"} if kind == "qwen" else none
        plain = after + len(SPECIALS[kind])
        settings["added_tokens"] = [
            *(added(t, after + n) for n, t in enumerate(SPECIALS[kind])),
            *(
                added(t, plain + n, special=False)
                for n, t in enumerate(PLAIN_BY_KIND.get(kind, ()))
            ),
        ]
        settings["post_processor"] = BYTES
    return settings | changes


def without_bytes(kind="smollm2", missing=SMOLLM2_LACKS, **changes):
    """Return the tokenizer.json of a kind whose vocabulary lacks bytes, as SmolLM2's does.

    What can't be spelled is then the first special token, as in SmolLM2's file.
    """
    settings = settings_of(kind)
    letters = {letter for letter, byte in byte_of_letter().items() if byte in missing}
    vocab = settings["model"]["vocab"]
    kept = {token: number for token, number in vocab.items() if token not in letters}
    model = {**settings["model"], "vocab": kept, "unk_token": SPECIALS[kind][0]}
    return settings | {"model": model} | changes


def starting(*ids, token="<|begin_of_text|>"):
    """Return a post-processor that puts a token before a text."""
    before = [{"SpecialToken": {"id": token, "type_id": 0}}]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    names = [token] * len(ids)
    return {
        "type": "TemplateProcessing",
        "single": before + text,
        "pair": before + text + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": list(ids), "tokens": names}},
    }


def tokenizer_of(kind, **changes):
    """Return the tokenizer of a kind, with some keys of its file replaced."""
    return Tokenizer(json.dumps(settings_of(kind, **changes)), kind)


def write_files(kind, folder, template=None):
    """Write the tokenizer's files of a model of this kind, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(kind)
    ids = {token["content"]: token["id"] for token in settings["added_tokens"]}
    config = {**CONFIGS[kind], "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer.json", settings)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"eos_token": config["eos_token"]})
    stops = [ids[token] for token in STOPS[kind]]
    end = stops[0] if len(stops) == 1 else list(stops)
    write_json(folder / "generation_config.json", {"eos_token_id": end})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
