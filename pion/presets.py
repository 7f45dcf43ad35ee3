"""Named models. A preset is a set of ModelConfig fields and nothing more."""

# Pion: dense, with the vocabulary of the tokenizer its published checkpoints were trained with.
_PION = {"family": "pion", "vocab_size": 50_258, "seq_len": 2048}

PRESETS: dict[str, dict[str, int | str]] = {
    "pion-nano": _PION
    | {"d_model": 384, "n_layers": 6, "n_heads": 6, "n_kv_heads": 2, "d_ff": 1024},
    "pion-micro": _PION
    | {"d_model": 512, "n_layers": 12, "n_heads": 8, "n_kv_heads": 2, "d_ff": 1408},
    "pion-small": _PION
    | {"d_model": 640, "n_layers": 16, "n_heads": 10, "n_kv_heads": 2, "d_ff": 1792},
    "pion-base": _PION
    | {"d_model": 768, "n_layers": 20, "n_heads": 12, "n_kv_heads": 4, "d_ff": 2048},
    "pion-large": _PION
    | {"d_model": 1024, "n_layers": 24, "n_heads": 16, "n_kv_heads": 4, "d_ff": 2816},
    "pion-xl": _PION
    | {"d_model": 1536, "n_layers": 28, "n_heads": 16, "n_kv_heads": 4, "d_ff": 4096},
}
