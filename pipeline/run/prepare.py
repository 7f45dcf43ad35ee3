"""The stage `prepare` of a run: make the data on this machine, then keep it in the run's store."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.console.messages import PrepareProgress, Say
from pipeline.run.start import Start
from pipeline.state.bases import bring_base
from pipeline.state.patience import Patience


def prepare_data(start: Start, say: Say, patiently: Patience) -> dict[str, Any]:
    """Prepare the data of every training stage; return a report of each part.

    Prepared data counts once the store has it, so the next machine trains on the same bytes.
    """
    from pipeline.stages.prepare import prepare_pretrain, prepare_sft

    data = start.digests.data
    folders = {part: start.workspace.folder(f"data/{data[part]}") for part in data}
    reports: dict[str, Any] = {}
    tokenizer: Path | None = None
    if start.job.base is not None:
        base = start.job.base
        folder = patiently(partial(bring_base, start.run.store, base, weights=False))
        tokenizer = folder / "tokenizer.json"
    again = start.options.redo == "prepare"
    with _made_again(list(folders.values())) if again else contextlib.nullcontext():
        if "pretrain" in data:
            folder = folders["pretrain"]
            reports["pretrain"] = prepare_pretrain(start.job, folder, say, tokenizer)
            tokenizer = folder / "tokenizer.json"
        if "sft" in data:
            reports["sft"] = prepare_sft(start.job, folders["sft"], tokenizer, say)
    for part in data:
        patiently(partial(_keep, start, part, say))
    return reports


def _keep(start: Start, part: str, say: Say) -> None:
    def progress(done: int, total: int) -> None:
        say(PrepareProgress(f"upload {part} data", done / 1e6, "MB", total=total / 1e6))

    start.workspace.keep_data(start.digests.data[part], progress)


@contextlib.contextmanager
def _made_again(folders: list[Path]) -> Iterator[None]:
    """Move the prepared data in `folders` aside; restore it if preparing it again fails."""
    aside = {folder: folder.with_name(f"{folder.name}.old") for folder in folders}
    for folder, old in aside.items():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
    try:
        yield
    except BaseException:
        for folder, old in aside.items():
            if old.exists():
                shutil.rmtree(folder, ignore_errors=True)
                old.rename(folder)
        raise
    for old in aside.values():
        shutil.rmtree(old, ignore_errors=True)
