"""What clients may ask: the fields of OpenAI's API, and those that vLLM adds to them.

A field that would change the answer and that Pion does not have is refused: an answer that ignores
it would be a surprise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pion.generate import Settings

# The most answers to one request, stop strings, and alternatives of a token.
MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES = 16, 16, 20

# These fields don't change what a model answers.
_WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    }
)
# Of these fields, only the values that ask for nothing are accepted.
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
    "add_generation_prompt": (True,),
}

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[list[Stop], Field(max_length=MOST_STOPS)]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class _Request(BaseModel):
    """The fields that both kinds of requests have. None: the model's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # vLLM: -1 is no limit
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Stops | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise ValueError("the body must be a JSON object")
        kept = {}
        for name, value in fields.items():
            if name in _ASKS_NOTHING and value is not None and value not in _ASKS_NOTHING[name]:
                raise ValueError(f"{name} is not supported by this server; leave it out")
            if name not in _WITHOUT_EFFECT and name not in _ASKS_NOTHING:
                kept[name] = value
        return kept

    @property
    def stops(self) -> list[str]:
        """The texts before which the answer ends."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def settings(
        self,
        defaults: dict[str, Any],
        *,
        stop_ids: tuple[int, ...],
        max_tokens: int,
        vocab_size: int,
        choice: int = 0,
    ) -> Settings:
        """Return how the answer number `choice`, counted from 0, is drawn.

        With a `seed`, each choice has the next seed: choice 0 is what `pion.generate` draws.
        """
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "repetition_penalty": self.repetition_penalty,
        }
        return Settings(
            **{name: defaults[name] if value is None else value for name, value in given.items()},
            stop_ids=() if self.ignore_eos else stop_ids,
            max_tokens=max_tokens,
            vocab_size=vocab_size,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
        )


class TextPart(BaseModel):
    """A part of a message. Only texts are supported."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation. `developer` is a newer name of `system`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def to_template(self) -> dict[str, str]:
        """Return the message as templates expect it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


Messages = Annotated[list[ChatMessage], Field(min_length=1)]


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs an assistant's message at the end")
        return self


class CompletionRequest(_Request):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: prompts have no logprobs here")
        if not 1 <= len(self.prompts) <= MOST_CHOICES:
            raise ValueError(f"prompt: 1 to {MOST_CHOICES} prompts can be sent together")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts: texts or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(BaseModel):
    """The body of POST /v1/tokenize: a text, or a conversation that an answer would follow."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self
