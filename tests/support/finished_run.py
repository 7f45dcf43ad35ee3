"""A run for tests to read, as `pion run` leaves it in a store, with a tiny untrained model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.model.decoder import Decoder
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.retention import Keep
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.in_process_uploader import InProcessUploader
from tests.support.tiny_config import tiny_config

TEXT = ["Return a new header with string.", "The quick brown fox jumps over the lazy dog."] * 20


def tiny_tokenizer() -> Tokenizer:
    return train_bpe(TEXT, 300)


def tiny_model(vocab_size: int, seq_len: int = 64, seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(tiny_config(vocab_size=vocab_size, seq_len=seq_len, **changes))


def make_run(
    folder: Path,
    name: str = "demo",
    *,
    saves: Sequence[tuple[str, int]] = (("pretrain", 10), ("pretrain", 20), ("sft", 5)),
    finished: Sequence[str] = ("pretrain", "sft"),
    release: bool = True,
    **changes: Any,
) -> RunState:
    """Make a run in the store `folder` with these (stage, step) checkpoints and finished stages.

    `changes` are made to the tiny model's settings.
    """
    run = RunState(FileStore(folder), name)
    claim = claim_run(run, Owner.me())
    tokenizer = tiny_tokenizer()
    path = run.store.local_path(run.key("data/1234/tokenizer.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    newest: dict[str, str] = {}
    for seed, (stage, step) in enumerate(saves):
        model = tiny_model(tokenizer.vocab_size, seed=seed, **changes)
        config = json.dumps(model.config.to_dict()).encode()
        series = CheckpointSeries(
            stage, f"digest-{stage}", lambda state, c=config: {"config.json": c}, Keep(last=9)
        )
        saver = Checkpointer(claim, series, uploader=InProcessUploader(run.store))
        state = {"step": step, "next_row": 0, "tokenizer": "data/1234/tokenizer.json"}
        saver.save(model.state_dict(), {"m": torch.zeros(2)}, state)
        saver.close()
        newest[stage] = saver.last.key
        if stage in finished and not any(s == stage for s, _ in saves[seed + 1 :]):
            claim.finish_stage(stage, f"digest-{stage}", {}, newest[stage])
    if release:
        claim.release()
    return run
