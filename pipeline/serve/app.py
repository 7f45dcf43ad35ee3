"""The web application: which path is answered how, whole or as it is written, and errors in the
API's form."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from pion.generation.answer_reader import THINKS, Place, Reading
from pion.generation.grammar import Grammar
from pion.generation.text import Text
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import printable, show
from pipeline.serve.answer_json import ChatShape, CompletionShape
from pipeline.serve.answers import Answers, Part, joined
from pipeline.serve.body import LARGEST_BODY, Arrivals, read_body
from pipeline.serve.errors import ApiError, refuse
from pipeline.serve.messages import MOST_TOOLS
from pipeline.serve.requests import (
    ChatRequest,
    CompletionRequest,
    ConversationRequest,
    Request,
    TokenizeRequest,
    schema_of,
)
from pipeline.serve.responses import ResponseShape, ResponsesRequest
from pipeline.serve.served_model import ServedModel
from pipeline.web.address import Rules
from pipeline.web.guard import Handler, add_headers, guard
from pipeline.web.page import read_page

# OpenAI's default for /v1/completions.
COMPLETION_TOKENS = 16
# Why tools are refused.
OLD_NAME = "takes functions by their newer name: send them as tools"
NO_FORM = (
    "has a chat template without tools, or one that writes calls in another form than JSON with a "
    "name and arguments, and Pion reads no other"
)
NO_RESPONSES = "has no tools in /v1/responses; /v1/chat/completions may have them"
LEAVE_OUT = "To get answers without tools, leave them out, or start the server with --ignore-tools"
NO_CALLS = (
    "an answer with a response_format can't call tools. Leave response_format out, or set "
    'tool_choice to "none"'
)
PAGE = read_page(Path(__file__).with_name("page"))


class Api:
    """Answers the requests for some models. The first one is meant where a request names none."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        rules: Rules,
        most_requests: int,
        *,
        ignore_tools: bool = False,
    ) -> None:
        self._models: Mapping[str, ServedModel] = {served.name: served for served in models}
        self._rules, self._most_requests = rules, most_requests
        self._ignore_tools = ignore_tools
        self._requests, self._arrivals = 0, Arrivals()
        self._created = int(time.time())

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(
            middlewares=[self._errors, guard(self._rules, refuse), self._limit],
            client_max_size=LARGEST_BODY,
        )
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/health", self._health),
                web.get("/v1/models{slash:/?}", self._list_models),
                web.get("/v1/models/{name:.+?}{slash:/?}", self._show_model),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._complete),
                web.post("/v1/responses", self._respond),
                web.post("/v1/tokenize", self._tokenize),
            ]
        )
        return app

    # ------------------------------------------------------------ middleware

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer with an error of the API, whatever has failed."""
        try:
            return await handler(request)
        except ApiError as error:
            response = error.response()
        except web.HTTPRequestEntityTooLarge:
            message = f"the request has more than {LARGEST_BODY:,} bytes"
            response = ApiError(413, message, code="too_large").response()
            response.force_close()
        except web.HTTPException as error:
            message = f"there is no {request.method} {printable(request.path)[:100]}"
            response = ApiError(error.status, message, code="not_found").response()
        except ConnectionResetError:  # the client has gone, so nobody reads the answer
            response = web.Response(status=400)
        except Exception as error:
            show(report_bug(error, ["serve"]))
            response = ApiError(500, "a bug in Pion; the server's log has the details").response()
        add_headers(request, response)
        return response

    @web.middleware
    async def _limit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request if too many others are being answered when its body has arrived."""
        if request.method != "POST":
            return await handler(request)
        await self._arrivals.wait_for(request)
        if self._requests >= self._most_requests:
            raise ApiError(429, f"{self._requests} requests are being answered", code="server_busy")
        self._requests += 1
        try:
            return await handler(request)
        finally:
            self._requests -= 1

    # ------------------------------------------------------------ handlers

    async def _page(self, request: web.Request) -> web.Response:
        return PAGE.response()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _list_models(self, request: web.Request) -> web.Response:
        records = [served.record(self._created) for served in self._models.values()]
        return web.json_response({"object": "list", "data": records})

    async def _show_model(self, request: web.Request) -> web.Response:
        return web.json_response(self._model(request.match_info["name"]).record(self._created))

    async def _tokenize(self, request: web.Request) -> web.Response:
        asked = await read_body(request, TokenizeRequest)
        served = self._model(asked.model)
        if asked.messages is not None:
            ids = await served.chat_ids(asked.messages, asked.continue_final_message)
        else:
            ids = await served.prompt_ids(asked.prompt or "", counted=True)
        return web.json_response(
            {"count": len(ids), "max_model_len": served.seq_len, "tokens": ids}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await read_body(request, ChatRequest)
        served = self._model(asked.model)
        form, thinks, options = await served.chat_form(asked)
        if self._ignore_tools and asked.demands:
            words = "with --ignore-tools, no tool can be demanded; leave tool_choice out"
            raise ApiError(400, words, param="tool_choice")
        unused = asked.tool_choice == "none"
        headers = self._warnings(served, asked, None if form or unused else NO_FORM)
        if self._ignore_tools or unused:
            form = None
        ids = await served.chat_ids(
            asked.messages,
            asked.continue_final_message,
            tools=asked.tools if form else None,
            options=options,
        )
        param, schema = "response_format", schema_of(asked.response_format)
        if form is not None and schema is not None:
            raise ApiError(400, NO_CALLS, param=param)
        thinks = thinks and schema is None and asked.reasoning_format != "none"
        place: Place = "text"
        if thinks and served.tokenizer.decode(ids[-8:], specials=True).rstrip().endswith(THINKS):
            place = "thought"
        if form is not None and asked.demands:
            ids += served.tokenizer.encode_further(form.opening, specials=True)
            schema, param, place = form.schema(asked.demanded), "tools", "call"
        calls = 1 if asked.parallel_tool_calls is False else MOST_TOOLS
        continues = bool(asked.continue_final_message)
        reading = Reading(asked.stop or (), form, thinks, place, calls, continues)
        limits = asked.max_completion_tokens, asked.max_tokens
        most = next((limit for limit in limits if limit is not None), served.seq_len)
        texts = _texts(served, asked, [ids], most, await served.grammar(schema, param))
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        answers = Answers(served, texts, len(ids), reading, top)
        shape = ChatShape(served.name, served.tokenizer, logprobs=top is not None)
        return await send(request, asked, answers, shape, headers)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        asked = await read_body(request, ResponsesRequest)
        served = self._model(asked.model)
        headers = self._warnings(served, asked, NO_RESPONSES)
        ids = await served.chat_ids(asked.messages, param="input")
        most = served.seq_len if asked.max_output_tokens is None else asked.max_output_tokens
        grammar = await served.grammar(schema_of(asked.answer_format), "text.format")
        texts = _texts(served, asked, [ids], most, grammar)
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        answers = Answers(served, texts, len(ids), Reading(asked.stop or ()), top)
        shape = ResponseShape(served.name, served.tokenizer, asked, served.sampling)
        return await send(request, asked, answers, shape, headers)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await read_body(request, CompletionRequest)
        served = self._model(asked.model)
        given: list[str | list[int]] = asked.prompt
        if asked.echo and asked.logprobs is not None:
            served.check_scored(given)
        for prompt in given:  # all of them, before any is encoded
            if isinstance(prompt, str):
                served.check_length(prompt)
        prompts = [await served.prompt_ids(prompt) for prompt in given]
        most = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        texts = _texts(served, asked, prompts, most)
        prompt_tokens = sum(len(ids) for ids in prompts)
        echoes = [
            prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
            for prompt in (given if asked.echo else ())
            for _ in range(asked.n or 1)
        ]
        reading = Reading(asked.stop or (), continues=True)
        answers = Answers(served, texts, prompt_tokens, reading, asked.logprobs, echoes)
        shape = CompletionShape(served.name, served.tokenizer, logprobs=asked.logprobs is not None)
        return await send(request, asked, answers, shape, {})

    def _model(self, name: str | None) -> ServedModel:
        """Return the model of a name. Raises ApiError if there is none."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        names = ", ".join(self._models)
        if name is None:
            raise ApiError(400, f"model is missing; it is one of: {names}", param="model")
        if name not in self._models:
            message = f"there is no model {printable(name)[:100]!r} here; there are: {names}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return self._models[name]

    def _warnings(
        self, served: ServedModel, asked: ConversationRequest, why_not: str | None
    ) -> Mapping[str, str]:
        """Return headers that say what is odd about the answer.

        Raises ApiError if the request offers tools, unless they can be used (`why_not` is None) or
        are to be ignored.
        """
        warnings = [] if served.chat else ["this model has no chat template"]
        if asked.offered and self._ignore_tools:
            warnings.append(f"{asked.offered} were ignored")
        elif asked.offered and (why_not := OLD_NAME if asked.functions else why_not):
            raise ApiError(400, f"{served.name} {why_not}. {LEAVE_OUT}", param=asked.offered)
        return {"Pion-Warning": "; ".join(warnings)} if warnings else {}


def _texts(
    served: ServedModel,
    asked: Request,
    prompts: Sequence[list[int]],
    max_tokens: int,
    grammar: Grammar | None = None,
) -> list[Text]:
    """Return the texts that are continued: `n` of each prompt."""
    settings = partial(
        asked.settings,
        served.sampling,
        stop_ids=served.stop_ids,
        max_tokens=max_tokens,
        tokenizer=served.tokenizer,
        grammar=grammar,
    )
    repeated = (ids for ids in prompts for _ in range(asked.n or 1))
    return [served.text(ids, settings(choice=choice)) for choice, ids in enumerate(repeated)]


# ---------------------------------------------------------------- sending


@contextlib.contextmanager
def _answering(request: web.Request, answers: Answers) -> Iterator[None]:
    """Ask for the answers, and free what they use when the block ends.

    Then print a line about the request. It has no text of the request.
    """
    start = time.monotonic()
    answers.begin()
    try:
        yield
    finally:
        answers.close()
        seconds = time.monotonic() - start
        show(
            f"{time.strftime('%H:%M:%S')} {request.path} {answers.prompt_tokens} + "
            f"{answers.completion_tokens} tokens in {seconds:.2f} s"
        )


async def send(
    request: web.Request,
    asked: Request,
    answers: Answers,
    shape: ChatShape | CompletionShape | ResponseShape,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send the answers when all have ended, or as they are written, as server-sent events."""
    with _answering(request, answers):
        if not asked.stream:
            parts: list[list[Part]] = [[] for _ in range(answers.choices)]
            async for part in answers.parts():
                parts[part.choice].append(part)
            whole = shape.whole(list(map(joined, parts)), answers)
            return web.json_response(whole, headers=headers)
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        add_headers(request, response)
        await response.prepare(request)
        async for event in shape.events(answers, asked):
            await response.write(event)
        await response.write_eof()
    return response
