"""A Pion decoder as a model of transformers, for models that no stock architecture computes.

An export has a copy of this file and of the library's files that it imports, so that transformers
can run the model where Pion is not installed. The maths is all in `Decoder`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from pion.config.model_config import ModelConfig
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder

# The names by which other libraries ask for our settings.
_THEIR_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "seq_len",
}


class PionConfig(PretrainedConfig):
    """Holds the fields of ModelConfig in `decoder_settings`."""

    model_type = "pion"

    def __init__(self, decoder_settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.decoder_settings = dict(decoder_settings or {})
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _THEIR_NAMES and "decoder_settings" in self.__dict__:
            return self.decoder_settings.get(_THEIR_NAMES[name])
        raise AttributeError(f"PionConfig has no attribute {name!r}")


class PionCache:
    """The keys and values of a batch: in one KVCache, or in one per row if the batch is padded."""

    is_compileable = False

    def __init__(self, config: ModelConfig, max_tokens: int) -> None:
        self.config, self.max_tokens = config, max_tokens
        self.length = 0
        self.parts: list[KVCache] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far, padding included."""
        return self.length

    def extend(self, length: int, count: int) -> list[KVCache]:
        """Count `length` more tokens, and return the `count` caches for them."""
        if not self.parts:
            self.parts = [KVCache(self.config, max_tokens=self.max_tokens) for _ in range(count)]
        if len(self.parts) != count:
            raise ValueError("give the attention_mask of the first tokens with all later tokens")
        self.length += length
        return self.parts


class PionForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder as transformers sees it; rows with padding are computed one by one without it."""

    config_class = PionConfig
    base_model_prefix = "decoder"
    _is_stateful = True  # the cache can't forget tokens, so transformers must not guess ahead

    def __init__(self, config: PionConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(ModelConfig.from_dict(config.decoder_settings))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the decoder has drawn its initial weights."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.decoder.embed

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, vocab_size), and the mean cross-entropy of `labels` (B, T).

        `attention_mask` (B, cached tokens + T) is 0 for padding, whose logits mean nothing. As
        everywhere in transformers, `labels` are the tokens themselves, and -100 has no loss.
        `logits_to_keep` returns only the last logits. Raises ValueError for a mask of another shape
        and for another class of cache.
        """
        if not isinstance(past_key_values, PionCache | None):
            raise ValueError("this model has its own cache: pass use_cache=True instead of a cache")
        cache: Any = past_key_values
        if cache is None and use_cache:
            cache = PionCache(self.decoder.config, self.decoder.config.seq_len)
        real = _real(attention_mask, input_ids, 0 if cache is None else cache.length)
        hidden = self._hidden(input_ids, real, cache)
        logits: Any = self.decoder.logits(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            if real is not None:  # padding predicts nothing and is not predicted
                labels = labels.masked_fill(~(real & real.roll(1, dims=1)), -100)
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _hidden(self, tokens: Tensor, real: Tensor | None, cache: PionCache | None) -> Tensor:
        """Return the hidden states (B, T, d_model). `real` (B, T) is false at padding."""
        batch, length = tokens.shape
        count = 1 if real is None else batch
        parts = [None] * count if cache is None else cache.extend(length, count)
        if real is None:
            return self.decoder.hidden(tokens, cache=parts[0])
        hidden = torch.zeros(batch, length, self.decoder.config.d_model, device=tokens.device)
        for row, mine in enumerate(real):
            if mine.any():
                hidden[row, mine] = self.decoder.hidden(tokens[row, mine][None], cache=parts[row])
        return hidden

    def _prepare_cache_for_generation(self, settings: Any, inputs: Any, *_: Any) -> Any:
        """Give `generate` this model's cache, and end the text where the context ends."""
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError("generate needs padding on the left: set padding_side='left'")
        if settings.cache_implementation is not None:
            raise ValueError("cache_implementation can't be set: this model has its own cache")
        settings.max_length = min(settings.max_length, self.decoder.config.seq_len)
        if settings.use_cache and inputs.get("past_key_values") is None:
            inputs["past_key_values"] = PionCache(self.decoder.config, settings.max_length)


def _real(mask: Tensor | None, tokens: Tensor, past: int) -> Tensor | None:
    """Return whether each of `tokens` (B, T) is no padding; None if there is no padding at all."""
    shape = (tokens.shape[0], past + tokens.shape[1])
    if mask is not None and mask.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; it must be {shape}")
    return None if mask is None or bool(mask.all()) else mask[:, past:].bool()
