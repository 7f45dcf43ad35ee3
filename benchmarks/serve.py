"""Compare `pion serve` with `transformers serve`, for 1 and 16 requests at once.

Both serve the same exported folder over HTTP: the shape of jobs/demo-prefer.yaml with random
weights, in fp32. The client is OpenAI's. Each request streams 64 tokens after its own prompt. The
peer's continuous batching has bounded blocks: with its defaults it took 16.3 GB on a CPU. Random
weights hardly ever end a text, and tokens are counted by the servers, so each side is paid for what
it did.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from openai import AsyncOpenAI, OpenAI, OpenAIError

from benchmarks.comparison import (
    Comparison,
    Measure,
    alternate,
    at_least,
    at_most,
    compare,
    quartiles,
)
from pion.data.documents.python_docs import documents
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.model.decoder import Decoder
from pipeline.job.file import load_job

ROUNDS, WARMUP, TOGETHER = 5, 1, 16
TOKENS, QUICK_TOKENS = 64, 8
PROMPT = "Request number {}: what does the function {} of a string return, and when is it used?"
METHODS = ("split", "join", "strip", "find", "count", "title", "upper", "zfill")
STARTS_WITHIN = 180.0  # seconds
PEER = ("--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "256")
PEER_OPTIONS = (*PEER, "--cb-max-batch-tokens", "256", "--device", "cpu", "--dtype", "float32")


@dataclass
class Server:
    """A server of the model, and how long its first tokens took with 16 requests at once."""

    url: str
    model: str
    first_token_seconds: list[float] = field(default_factory=list)

    def speed(self, requests: int, tokens: int) -> Measure:
        """Return a measure of the tokens per second of that many requests at once."""

        def measure(number: int) -> float:
            start = time.perf_counter()
            drawn, waits = asyncio.run(self._ask_all(requests, tokens))
            if requests == TOGETHER:
                self.first_token_seconds.append(statistics.mean(waits))
            return drawn / (time.perf_counter() - start)

        return measure

    async def _ask_all(self, requests: int, tokens: int) -> tuple[int, list[float]]:
        async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0) as client:
            each = [self._ask(client, number, tokens) for number in range(requests)]
            found = await asyncio.gather(*each)
        return sum(count for count, _ in found), [wait for _, wait in found]

    async def _ask(self, client: AsyncOpenAI, number: int, tokens: int) -> tuple[int, float]:
        """Return how many tokens were drawn, and the seconds until the first one came."""
        start, first, drawn = time.perf_counter(), 0.0, 0
        stream = await client.completions.create(
            model=self.model,
            prompt=PROMPT.format(number, METHODS[number % len(METHODS)]),
            max_tokens=tokens,
            temperature=0.8,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            first = first or time.perf_counter() - start
            drawn = chunk.usage.completion_tokens if chunk.usage else drawn
        return drawn, first


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison with the peer, with a lone request, and the time to a first token."""
    tokens = QUICK_TOKENS if quick else TOKENS
    rounds, warmup = (2, 0) if quick else (ROUNDS, WARMUP)
    with tempfile.TemporaryDirectory() as folder:
        model = export_demo(Path(folder) / "model")
        ours_command = [sys.executable, "-m", "pipeline.cli", "serve", "--dtype", "float32"]
        peer_command = [str(Path(sys.executable).with_name("transformers")), "serve"]
        with (
            started([*ours_command, f"demo={model}"], "demo") as ours,
            started([*peer_command, str(model), *PEER_OPTIONS], str(model)) as peer,
        ):
            sides = {"ours": ours, "peer": peer}
            measures = {
                f"{name} {requests}": side.speed(requests, tokens)
                for requests in (1, TOGETHER)
                for name, side in sides.items()
            }
            speeds = alternate(measures, rounds, warmup)
    details = {"new tokens": tokens, "dtype": "float32", "peer's options": " ".join(PEER)}
    yield compare(
        (f"serving, {TOGETHER} requests at once", "a lone request, Pion", "tokens/s"),
        speeds[f"ours {TOGETHER}"],
        speeds["ours 1"],
        at_least(4),
        details,
    )
    for requests, target in ((TOGETHER, at_least(1)), (1, None)):
        what = f"serving, {requests} request{'s at once' if requests > 1 else ''}"
        yield compare(
            (what, "transformers serve", "tokens/s"),
            speeds[f"ours {requests}"],
            speeds[f"peer {requests}"],
            target,
            details,
        )
    waits = ours.first_token_seconds[warmup:]
    yield Comparison(
        f"serving, mean first token at {TOGETHER}",
        "transformers serve",
        "s",
        ours=statistics.median(waits),
        theirs=statistics.median(peer.first_token_seconds[warmup:]),
        result=statistics.median(waits),
        quartiles=quartiles(waits),
        rounds=len(waits),
        target=at_most(1),
        details={"result": "our seconds, not a ratio"},
    )


def export_demo(folder: Path) -> Path:
    """Export a model of the shape of jobs/demo-prefer.yaml, with random weights, to `folder`.

    Returns `folder`.
    """
    job = load_job(Path(__file__).parent.parent / "jobs" / "demo-prefer.yaml")
    texts = [document.text for _, document in zip(range(200), documents(), strict=False)]
    torch.manual_seed(0)
    tokenizer = train_bpe(texts, 2048)
    path = folder.with_name("tokenizer.json")
    tokenizer.save(path)
    export_model(Decoder(job.model_config_resolved()), path, folder)
    return folder


@contextmanager
def started(command: Sequence[str], model: str) -> Iterator[Server]:
    """Start a server on a free port; end it with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment: dict[str, Any] = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = Server(f"http://127.0.0.1:{port}", model)
        wait_for(server, process)
        yield server
    finally:
        process.terminate()
        process.wait()


def wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers a request."""
    end = time.monotonic() + STARTS_WITHIN
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        while True:
            try:
                client.completions.create(model=server.model, prompt="Hello", max_tokens=2)
                return
            except OpenAIError as error:
                if process.poll() is not None or time.monotonic() > end:
                    command = re.sub(r"\s+", " ", str(process.args))
                    raise RuntimeError(f"{command} does not answer: {error}") from None
                time.sleep(0.5)
