"""A model that is served: its name, its defaults, and the texts and ids of its requests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pion.data.tokens.special_tokens import GENERATION_CONFIG
from pion.errors import BadInput
from pion.generation.bounds import published_sampling
from pion.generation.grammar import Grammar, Grammars
from pion.generation.sampling import Sampling
from pion.generation.text import Settings, Text
from pipeline.serve.errors import ApiError
from pipeline.serve.messages import ChatMessage
from pipeline.serve.requests import ChatRequest

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.chat.tool_call_form import CallForm
    from pion.generation.engine import Engine
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel

Result = TypeVar("Result")

# How long an answer of the page is unless the user says otherwise.
ANSWER_TOKENS = 128
# A normalizer may make a text so many times shorter. NFC makes three bytes of nine.
MOST_COMPOSED = 4
# So many bytes are encoded at once, in a twentieth of a second.
ALWAYS_ENCODED = 64 << 10


class ServedModel:
    """A model with its engine.

    Attributes:
        name: what requests call it.
        label: what people read.
        chat: whether it was fine-tuned on conversations.
        seq_len: the most tokens of a prompt and its answer together.
        sampling: the settings where a request gives none. Published ones come before Pion's.
    """

    def __init__(
        self,
        name: str,
        found: FoundModel,
        model: Decoder,
        chat_format: ChatFormat,
        engine: Engine,
        seq_len: int,
    ) -> None:
        """Raise BadInput for a damaged generation_config.json."""
        self.name, self.label, self.chat = name, found.label, found.chat
        self.seq_len = seq_len
        own = dataclasses.asdict(Sampling())
        given = (
            published_sampling(found.folder / GENERATION_CONFIG) if found.kind == "export" else {}
        )
        self.sampling = {name: given.get(name, default) for name, default in own.items()}
        self.engine = engine
        self.tokenizer = chat_format.tokenizer
        self.stop_ids = chat_format.stop_ids
        self.model = model
        self._format = chat_format
        self._grammars = Grammars(self.tokenizer)
        # No text of more bytes fits. Shorter ones are encoded, so that an error has their tokens.
        normalized = 1 if self.tokenizer.normalization is None else MOST_COMPOSED
        longest = int(self.tokenizer.token_bytes().max())
        self._most_bytes = max(ALWAYS_ENCODED, seq_len * longest * normalized)
        # A chat format is for one thread. Long texts would stop all other requests meanwhile.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        # Texts that only are to be counted may be longer than any prompt.
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="count")
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compile schemas")

    async def chat_ids(
        self,
        messages: Sequence[ChatMessage],
        continue_last: bool | None = None,
        param: str = "messages",
        tools: Sequence[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids that an answer follows; with `continue_last`, that the last message is.

        `param` is what the request calls the messages.
        Raises ApiError if the model's template refuses the messages, or if one can't fit.
        """
        # Templates may leave out parts of messages that are neither a user's or a tool's nor
        # the one to continue.
        for message in messages:
            if message.role in ("user", "tool") or (continue_last and message is messages[-1]):
                self.check_length(message.text)
        asked = messages[:-1] if continue_last else messages
        begun = messages[-1].text if continue_last else ""

        def encode() -> list[int]:
            ids = self._format.prompt_ids([one.to_template() for one in asked], tools, options)
            return ids + (self.tokenizer.encode_further(begun) if begun else [])

        return await self._encoded(encode, param)

    async def chat_form(self, asked: ChatRequest) -> tuple[CallForm | None, bool, dict[str, Any]]:
        """Return what the template can do for a request.

        That is how calls are written (None: the template has no place for tools, or the request no
        tools), whether thoughts are marked, and what the request sets in the template. Raises
        ApiError if the template does not read what is set.
        """
        given, effort = asked.chat_template_kwargs or {}, asked.reasoning_effort

        return await self._encoded(
            lambda: (
                self._format.call_form if asked.tools else None,
                self._format.thinks,
                self._format.options(given, effort),
            ),
            "chat_template_kwargs" if given else "reasoning_effort",
        )

    async def prompt_ids(self, prompt: str | list[int], *, counted: bool = False) -> list[int]:
        """Return the ids of a text to continue, or of ids.

        A text that is only `counted` may have any length, and other requests don't wait for it.
        """
        if isinstance(prompt, list):
            return prompt
        thread = self._counter if counted else self._thread
        return await self._encoded(lambda: self.tokenizer.prompt(prompt), "prompt", thread)

    async def grammar(
        self, schema: dict[str, Any] | None, param: str = "response_format"
    ) -> Grammar | None:
        """Return the grammar of JSON that fits a schema; None: any text.

        `param` is what the request calls the format. Raises ApiError if the schema can't be used.
        """
        if schema is None:
            return None
        return await self._encoded(lambda: self._grammars.of_schema(schema), param, self._compiler)

    def check_length(self, text: str) -> None:
        """Raise ApiError if a text can't fit, however long its tokens are.

        To encode millions of characters takes seconds, in which other texts wait.
        """
        count = len(text.encode())
        if count > self._most_bytes:
            raise ApiError(
                400,
                f"the prompt has {count:,} bytes, and {self.name} has a context of "
                f"{self.seq_len:,} tokens for prompt and answer, which is less. Shorten the prompt",
                code="context_length_exceeded",
            )

    def check_scored(self, prompts: Sequence[str | list[int]]) -> None:
        """Raise ApiError if a text whose tokens are to be scored spells a special token.

        Clients that score texts (lm-eval) take it for one id. Here a text is always plain text, so
        the client would read the probabilities of other tokens.
        """
        for prompt in prompts:
            for special in self.tokenizer.specials if isinstance(prompt, str) else ():
                if special in prompt:
                    raise ApiError(
                        400,
                        f"the prompt spells {special}, which is plain text here and no special "
                        "token. To score the special token, send the prompt as a list of ids "
                        "(lm-eval: leave out tokenized_requests)",
                        param="prompt",
                    )

    def text(self, ids: list[int], settings: Settings) -> Text:
        """Return the text that continues `ids`. Raises ApiError if it can't be continued."""
        if len(ids) + (1 if settings.max_tokens else 0) > self.seq_len:
            raise ApiError(
                400,
                f"the prompt has {len(ids):,} tokens, and {self.name} has a context of "
                f"{self.seq_len:,} tokens for prompt and answer. Shorten the prompt",
                code="context_length_exceeded",
            )
        room = min(settings.max_tokens, self.seq_len - len(ids))
        try:
            return Text(self.model, ids, dataclasses.replace(settings, max_tokens=room))
        except BadInput as error:
            raise ApiError(400, str(error)) from None

    def record(self, created: int) -> dict[str, Any]:
        """Return the model as /v1/models lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": "pion",
            "max_model_len": self.seq_len,
            "pion": {
                "label": self.label,
                "parameters": self.model.num_params(),
                "seq_len": self.seq_len,
                "vocab_size": self.model.config.vocab_size,
                "chat": self.chat,
                "sampling": {
                    **self.sampling,
                    "max_tokens": min(ANSWER_TOKENS, max(1, self.seq_len // 2)),
                },
            },
        }

    def close(self) -> None:
        """End all answers and the threads."""
        self.engine.close()
        for thread in (self._thread, self._counter, self._compiler):
            thread.shutdown(cancel_futures=True)
        self._format.close()

    async def _encoded(
        self, encode: Callable[[], Result], param: str, thread: ThreadPoolExecutor | None = None
    ) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(thread or self._thread, encode)
        except BadInput as error:
            raise ApiError(400, str(error), param=param) from None
