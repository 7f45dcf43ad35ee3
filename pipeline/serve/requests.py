"""What clients may ask: the fields of OpenAI's API, and those that vLLM adds to them.

A field that would change the answer and that Pion does not have is refused: an answer that ignores
it would be a surprise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pion.data.tokens.tokenizer import Tokenizer
from pion.generation.grammar import Grammar
from pion.generation.text import Settings
from pipeline.serve.body import Fields, refused, within
from pipeline.serve.messages import Messages, Tools


class TextFormat(Fields):
    """`text.format` of a response. The answer always fits the schema, `strict` or not."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    given_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        if (self.given_schema is None) == (self.type == "json_schema"):
            missing = "schema is missing, which the type json_schema needs"
            words = f"the type is {self.type}; a schema needs json_schema"
            raise refused("schema", missing if self.given_schema is None else words)
        return self


def schema_of(asked: TextFormat | None) -> dict[str, Any] | None:
    """Return the schema that an answer must fit; None: it may be any text."""
    if asked is None or asked.type == "text":
        return None
    return {"type": "object"} if asked.type == "json_object" else asked.given_schema


def _flat(value: Any) -> Any:
    """Return `response_format` with the fields of its `json_schema`, as `text.format` has them."""
    if not isinstance(value, dict) or not isinstance(value.get("json_schema"), dict):
        return value
    return value["json_schema"] | {n: field for n, field in value.items() if n != "json_schema"}


# `response_format` of a chat.
AnswerFormat = Annotated[TextFormat, BeforeValidator(_flat)]


# More tokens than any context has.
NO_LIMIT = 2**31 - 1
# The most answers to one request, stop strings, and alternatives of a token.
MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES = 16, 16, 20
# OpenAI: as many ids.
MOST_BIASES = 1024
_IS_ID = re.compile(r"\d{1,9}", re.ASCII)
# Of an echoed prompt, whose tokens may fill the context.
MOST_ECHO_ALTERNATIVES = 5


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# vLLM: -1 is no limit
TopK = Annotated[int, Field(ge=-1), AfterValidator(partial(max, 0)), within("top_k")]
# llama.cpp: -1 is no limit of its own
Tokens = Annotated[
    int, Field(ge=-1), AfterValidator(lambda n: NO_LIMIT if n == -1 else n), within("max_tokens")
]
StopIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, max_length=MOST_STOPS)]


def _by_id(value: Any) -> Any:
    """Return the biases by id. In JSON, the names of fields are texts."""
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_BIASES:
        raise ValueError(f"logit_bias has {len(value):,} ids; {MOST_BIASES:,} are possible")
    if not all(isinstance(name, str) and _IS_ID.fullmatch(name) for name in value):
        raise ValueError('logit_bias must have ids of tokens as names, such as {"50": -100}')
    return {int(name): bias for name, bias in value.items()}


Biases = Annotated[
    dict[int, Annotated[float, within("logit_bias")]],
    Field(fail_fast=True),
    BeforeValidator(_by_id),
]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(fail_fast=True, max_length=MOST_STOPS),
    BeforeValidator(_listed),
]


class StreamOptions(Fields):
    """How an answer is streamed."""

    without_effect = frozenset({"include_obfuscation", "continuous_usage_stats"})

    include_usage: bool | None = None


class Request(Fields):
    """The fields that all kinds of requests for answers have. None: the model's default."""

    without_effect = frozenset(
        {
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "parallel_tool_calls",
        }
    )
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "chat_template_kwargs": ({},),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": (),
        "web_search_options": (),
        "suffix": ("",),
        "best_of": (1,),
        "add_generation_prompt": (True,),
        # vLLM's, with the only values that Pion's answers have.
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "add_special_tokens": (False,),
        "detokenize": (True,),
        "min_tokens": (0,),
        "use_beam_search": (False,),
        "early_stopping": (False,),
        "length_penalty": (1,),
        "typical_p": (1,),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
    }

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    top_k: TopK | None = None
    repetition_penalty: Annotated[float, within("repetition_penalty")] | None = None
    min_p: Annotated[float, within("min_p")] | None = None
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, within("seed")] | None = None
    stop_token_ids: StopIds | None = None  # the tokens before which the answer ends
    stop: Stops | None = None  # the texts before which the answer ends
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    ignore_eos: bool | None = None
    timings_per_token: bool | None = None  # llama.cpp: each chunk of a stream has `timings`

    def settings(
        self,
        defaults: dict[str, Any],
        *,
        stop_ids: tuple[int, ...],
        max_tokens: int,
        tokenizer: Tokenizer,
        grammar: Grammar | None = None,
        choice: int = 0,
    ) -> Settings:
        """Return how the answer number `choice`, counted from 0, is drawn.

        With a `seed`, each choice has the next seed: choice 0 is what `pion.generate` draws.
        """
        given = {name: getattr(self, name) for name in defaults}
        model_stops = () if self.ignore_eos else stop_ids
        # Texts have no special tokens, so a stop that is one is found by its id.
        special = tokenizer.special_ids
        asked_stops = [special[stop] for stop in self.stop or () if stop in special]
        return Settings(
            **{name: defaults[name] if value is None else value for name, value in given.items()},
            logit_bias=self.logit_bias,
            grammar=grammar,
            stop_ids=(*model_stops, *asked_stops, *(self.stop_token_ids or ())),
            max_tokens=max_tokens,
            vocab_size=tokenizer.vocab_size,
            seed=None if self.seed is None else (self.seed + choice) % 2**64,
        )


class ConversationRequest(Request):
    """A request for the next message of a conversation. It may offer tools."""

    tools: list[Any] | None = None
    functions: list[Any] | None = None  # their older name

    @property
    def offered(self) -> str | None:
        """The field that offers tools, or None."""
        return "functions" if self.functions else "tools" if self.tools else None


class ChatRequest(ConversationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Messages
    tools: Tools | None = None
    # "none", "auto" (the default), "required", or {"type": "function", "function": {"name": …}}
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None  # none: in the text
    response_format: AnswerFormat | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    continue_final_message: bool | None = None

    @property
    def demands(self) -> bool:
        """Whether a tool must be called."""
        return self.tool_choice not in (None, "none", "auto")

    @property
    def demanded(self) -> list[dict[str, Any]]:
        """The tools of which one must be called, as `{name, parameters}`."""
        return [
            tool["function"]
            for tool in self.tools or ()
            if self.tool_choice
            in ("required", {"type": "function", "function": {"name": tool["function"]["name"]}})
        ]

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs needs logprobs: true")
        if self.demands and not self.demanded:
            raise refused(
                "tool_choice",
                'tool_choice must be "none", "auto", "required" or one of the tools by name: '
                '{"type": "function", "function": {"name": "clock"}}',
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            words = "continue_final_message needs an assistant's message at the end"
            raise refused("continue_final_message", words)
        return self


def _prompts(value: Any) -> Any:
    """Return the prompts in one of OpenAI's four forms. Raises ValueError for anything else."""
    prompts = value if isinstance(value, list) and not _are_ids(value) else [value]
    if not 1 <= len(prompts) <= MOST_CHOICES:
        raise ValueError(
            f"prompt has {len(prompts):,} prompts; 1 to {MOST_CHOICES} can be sent together"
        )
    if not all(isinstance(prompt, str) or _are_ids(prompt) for prompt in prompts):
        raise ValueError(
            "prompt must be a text, a list of ids, or a list of texts or of such lists"
        )
    return prompts


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class CompletionRequest(Request):
    """The body of POST /v1/completions."""

    prompt: Annotated[Any, BeforeValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.echo and (self.logprobs or 0) > MOST_ECHO_ALTERNATIVES:
            raise refused(
                "logprobs", f"with echo, logprobs must be from 0 to {MOST_ECHO_ALTERNATIVES}"
            )
        return self


class TokenizeRequest(Fields):
    """The body of POST /v1/tokenize: a text, or a conversation that an answer would follow."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self
