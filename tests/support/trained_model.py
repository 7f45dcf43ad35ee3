"""A tiny trained model, and the job that would have made it, for tests of publishing."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pion.data.tokens.tokenizer import train_bpe
from pion.model.decoder import Decoder
from pipeline.cost.costs import Costs
from pipeline.job import Job
from pipeline.report.history import RunHistory
from pipeline.stages.publish import publish_run
from pipeline.state.head import Head, StageRecord

TEXTS = ["Return a new header with the string.", "The meaning of life is a docstring."]
RESULTS: dict[str, Any] = {
    "pretrain": {
        "loss": 3.0,
        "loss_sem": 0.02,
        "perplexity": 20.1,
        "bits_per_byte": 2.08,
        "continuations": {"accuracy": 0.6, "chance": 0.25, "questions": 100},
    },
    "ngram": {"order": 4, "loss": 3.05, "perplexity": 21.0, "bits_per_byte": 2.10},
}
METRICS = {
    "pretrain": [{"step": s, "epoch": 1, "at": 60.0, "loss": 3 + 1 / s} for s in range(1, 20)]
}
TRAINING = {"event": "training", "stage": "pretrain", "epoch": 1, "at": 0.0}
TRAINING |= {"device": "2-core CPU", "workers": 1}


class Trained:
    """A trained model's files and the job that made it."""

    def __init__(self, folder: Path, **model_fields: Any) -> None:
        self.model_fields = model_fields
        self.model = folder / "checkpoint"
        self.model.mkdir()
        train_bpe(TEXTS, 280).save(self.model / "tokenizer.json")
        torch.manual_seed(0)
        decoder = Decoder(self.job(folder / "unused").model_config_resolved())
        (self.model / "config.json").write_text(json.dumps(decoder.config.to_dict()))
        save_file(decoder.state_dict(), self.model / "model.safetensors")

    def job(self, to: str | Path, **publish: Any) -> Job:
        return Job.model_validate(
            {
                "name": "demo",
                "model": {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
                | {"d_ff": 48, "vocab_size": 300, **self.model_fields},
                "tokenizer": {"file": "tokenizer.json"},
                "data": {"seq_len": 64, "sources": [{"kind": "python-docs"}]},
                "pretrain": {"steps": 20, "warmup_steps": 2},
                "publish": {"to": str(to), "license": "apache-2.0", **publish},
            }
        )

    def publish(self, to: str | Path, **changes: Any) -> dict[str, Any]:
        """Publish to `to`. `changes` are for the publish section, except `results`, `says` and
        `confirm`."""
        results, says = changes.pop("results", RESULTS), changes.pop("says", [])
        confirm = changes.pop("confirm", lambda: None)
        history = RunHistory(
            self.job(to, **changes),
            "file:///runs/demo",
            Head().with_stage("evaluate", StageRecord("d", 0.0, result=results)),
            [TRAINING],
            METRICS,
            Costs((), {}),
        )
        return publish_run(history, self.model, TEXTS, says.append, confirm=confirm)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
