"""Load the models, decide their slots, and answer requests until SIGTERM."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from aiohttp import web

from pion.errors import BadInput
from pion.generation.answer import Deliver, Event, Listener
from pion.generation.decoding import bytes_per_row
from pion.generation.engine import Engine
from pion.generation.step_graphs import compile_steps
from pion.model.decoder import Decoder
from pion.train.hardware import memory_in_use, total_memory
from pipeline.console.formats import amount, show, size
from pipeline.models.find import FoundModel, find_model
from pipeline.serve.app import Api
from pipeline.serve.options import Options, load_as_asked
from pipeline.serve.served_model import ServedModel
from pipeline.web.address import Rules
from pipeline.web.listen import serve_until_stopped, url_of

NAME = re.compile(r"[A-Za-z0-9][\w.@/:+-]{0,99}")
# The share of the free memory that slots may take. The rest is for reading prompts.
SHARE = 0.8


def serve(options: Options) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Raises BadInput, before anything is loaded, for a port in use or a wrong name.
    """
    if (
        options.slots < 1
        or options.queue < 0
        or (options.seq_len is not None and options.seq_len < 2)
    ):
        raise BadInput("--slots must be at least 1, --queue at least 0, --seq-len at least 2")
    rules = options.address.rules()
    with closing(options.address.listen()) as listener:
        asyncio.run(_serve(options, find_models(options.models), rules, listener))


def find_models(asked: Sequence[str]) -> dict[str, FoundModel]:
    """Return the models by the names that requests call them by.

    Raises BadInput if there is no such model, and for two of one name.
    """
    models: dict[str, FoundModel] = {}
    for text in asked or (None,):
        name, found = _named(text)
        if name in models:
            raise BadInput(
                f"two models are called {name!r}. Nothing was started. Give one another name: "
                f"pion serve {name} other={text}"
            )
        models[name] = found
    return models


def _named(text: str | None) -> tuple[str, FoundModel]:
    """Return the model that `text` means, and its name."""
    if text is None:
        found = find_model(None)
        return found.label.split(" ")[0], found
    given, equals, rest = text.partition("=")
    if equals and NAME.fullmatch(given):
        return given, find_model(rest)
    found = find_model(text)
    name = text.removeprefix("hf://").rstrip("/")
    if found.commit is None:  # not a repository on the Hub: USER/NAME
        name = name.rsplit("/", 1)[-1]
    if not NAME.fullmatch(name):
        raise BadInput(
            f"{name[:100]!r} can't be the name of a model in requests. Nothing was started. Give "
            f"it another one: pion serve name={text}"
        )
    return name, found


async def _serve(
    options: Options, found: dict[str, FoundModel], rules: Rules, listener: socket.socket
) -> None:
    def started() -> None:
        url = url_of(listener)
        show(f"{url}  a page for people")
        show(f"{url}/v1  an API for programs, as OpenAI's. Ctrl-C stops the server.")

    with loaded(options, found) as models:
        await serve_until_stopped(application(models, rules, options), listener, started)


def application(models: Sequence[ServedModel], rules: Rules, options: Options) -> web.Application:
    """Return the application that serves the models. When it stops, it ends all answers."""
    most = len(models) * (options.slots + options.queue)
    app = Api(models, rules, most, ignore_tools=options.ignore_tools).app()

    async def end_answers(_: web.Application) -> None:
        for served in models:
            await asyncio.to_thread(served.engine.close)

    app.on_shutdown.append(end_answers)
    return app


@contextmanager
def loaded(options: Options, found: dict[str, FoundModel]) -> Iterator[list[ServedModel]]:
    """Load the models and start their engines; end them with the block.

    It is called in the event loop that answers the requests.
    """
    loop = asyncio.get_running_loop()

    def deliver(events: Sequence[tuple[Listener, Event]]) -> None:
        """Give events of an engine's thread to the listeners, in the thread of the requests."""
        loop.call_soon_threadsafe(_give, events)

    models: list[ServedModel] = []
    try:
        for name, model in found.items():
            models.append(_load(name, model, options, deliver))
        yield models
    finally:
        for served in models:
            served.close()


def _give(events: Sequence[tuple[Listener, Event]]) -> None:
    for listener, event in events:
        listener(event)


def _load(name: str, found: FoundModel, options: Options, deliver: Deliver) -> ServedModel:
    model, chat_format = load_as_asked(found, options.loading)
    model, weight = model.joined(), model.embed.weight
    seq_len = min(options.seq_len or model.config.seq_len, model.config.seq_len)
    slots, most_bytes = fit_slots(name, model, options.slots, seq_len, free_memory(weight.device))
    if weight.is_cuda:
        show(f"{name}: compiling the step that draws a token, which may take a minute")
        compile_steps(model)
    engine = Engine(
        model,
        deliver,
        slots=slots,
        queue=options.queue,
        seq_len=seq_len,
    )
    served = ServedModel(name, found, model, chat_format, engine, seq_len)
    fewer = "" if slots == options.slots else f" (memory for {options.slots} is missing)"
    show(
        f"{name}: {found.label}, {amount(model.num_params())} parameters in "
        f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}. "
        f"{slots} answers at once{fewer}, {seq_len:,} tokens each: "
        f"at most {size(most_bytes)} of memory"
    )
    if not found.chat:
        show(f"{name} was not fine-tuned on conversations: use /v1/completions")
    engine.start()
    return served


def fit_slots(name: str, model: Decoder, wanted: int, seq_len: int, free: int) -> tuple[int, int]:
    """Return the number of slots that fit `free` bytes, at most `wanted`, and their bytes.

    Raises BadInput if not even one fits.
    """
    each = bytes_per_row(model, seq_len)
    room = int(SHARE * free)
    count = min(wanted, room // each) if each else wanted
    if count < 1:
        tokens = int(seq_len * room / each)
        raise BadInput(
            f"{name}: an answer of {seq_len:,} tokens, prompt included, needs {size(each)} of "
            f"memory; {size(room)} may be used. Nothing was started. Use a shorter context: "
            f"--seq-len {max(tokens, 1)}"
        )
    return count, count * each


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still use on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return total_memory(device) - memory_in_use(device)
