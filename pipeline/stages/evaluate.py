"""The evaluate stage: what the base and the fine-tuned model are worth, beside two baselines.

Works part by part (one measure of one model), and every finished part is kept, so an interrupted
evaluation does only the rest. It reads checkpoints and never writes to training state.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pion.errors import BadInput
from pipeline.console.messages import Note, Say
from pipeline.job import Job

if TYPE_CHECKING:
    import torch

    from pion.data.stream import RowStream
    from pion.data.tokenizer import Tokenizer
    from pion.evaluate import Scorer
    from pion.model.decoder import Decoder
    from pion.multiple_choice import Question
    from pipeline.data.prepared import PreparedData
    from pipeline.data.shard_cache import ShardCache

Result = dict[str, Any]

CHOICES = "choices.jsonl"
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 32_768}  # of a batch; halved when memory runs out
NGRAM_WINDOW = 1  # shards shuffled together: few remote shards are fetched for the baseline


class Parts(Protocol):
    """Where finished parts are kept."""

    def load(self, name: str) -> Result | None:
        """The part as saved, or None."""

    def save(self, name: str, result: Result) -> Result:
        """Keep a part durably; returns what is kept, which another owner may have stored first."""


def evaluate_run(
    job: Job,
    *,
    models: dict[str, Path],
    pretrain_data: Path | None,
    sft_data: Path | None,
    parts: Parts,
    say: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Results of every model and baseline, by the names that the card and the report use.

    `models` maps training stages, in order, to checkpoint folders; the data folders are prepared
    ones. Held-out text is the first `evaluate.final_rows` rows of the held-out stream with the
    job's seed, so any two models are measured on the same rows. `say` gets a note as each
    part starts. `sleep` is called between batches and while another process works; what it raises
    ends the evaluation, and the part that was going on is done again next time. Raises BadInput,
    before anything is computed, for a pack that can't be used.
    """
    evaluation = _Evaluation(job, models, pretrain_data, sft_data, parts, say, sleep)
    try:
        return evaluation.results()
    finally:
        evaluation.close()


def read_packs(job: Job) -> dict[str, list[Question]]:
    """The job's multiple-choice packs by file stem.

    Raises BadInput naming file and line of what isn't a question, or two packs of one name.
    """
    from pion.multiple_choice import read_questions

    packs: dict[str, list[Question]] = {}
    for pack in job.evaluate.packs:
        path = job.input_path(pack)
        if path.stem in packs:
            raise BadInput(f"evaluate.packs: two packs are called {path.stem!r}: rename one")
        packs[path.stem] = read_questions(path)
    return packs


@dataclass
class _Evaluation:
    job: Job
    models: dict[str, Path]
    pretrain_data: Path | None
    sft_data: Path | None
    parts: Parts
    say: Say
    sleep: Callable[[float], None]
    _loaded: tuple[str, Decoder] | None = None
    _cache: ShardCache | None = None

    def results(self) -> Result:
        packs = read_packs(self.job)
        results: Result = {stage: self._model(stage, packs) for stage in self.models}
        if self.text is not None:
            results["untrained"] = self._part(
                "untrained.held_out", "untrained model on held-out text", self._untrained
            )
            if self.job.evaluate.ngram_order:
                results["ngram"] = self._part("ngram", "n-gram baseline", self._ngram)
        self._loaded = None
        self.close()
        if self.job.evaluate.lm_eval.tasks:
            results["lm_eval"] = self._lm_eval()
        return results

    def close(self) -> None:
        """Stop fetching shards."""
        if self._cache is not None:
            self._cache.close()

    def _part(self, name: str, label: str, compute: Callable[[], Result]) -> Result:
        result = self.parts.load(name)
        if result is None:
            self.say(Note(f"evaluate: {label}"))
            result = self.parts.save(name, compute())
        return result

    def _on_batch(self) -> None:
        self.sleep(0.0)

    # ------------------------------------------------------------ models

    def _model(self, stage: str, packs: dict[str, list[Question]]) -> Result:
        """All measures of the model of `stage`."""
        result: Result = {}
        if self.text is not None:
            result |= self._part(
                f"{stage}.held_out",
                f"{stage} model on held-out text",
                lambda: self._held_out(self._decoder(stage)),
            )
        if stage == "sft" and self.sft_data is not None:
            result |= self._part(
                "sft.responses", "sft model on held-out conversations", self._responses
            )
        if self.job.evaluate.continuations and (questions := self._continuations()):
            result["continuations"] = self._part(
                f"{stage}.continuations",
                f"{stage} model on {len(questions)} true continuations",
                partial(self._multiple_choice, stage, questions),
            )
        if packs:
            result["packs"] = {
                name: self._part(
                    f"{stage}.packs.{name}",
                    f"{stage} model on pack {name}",
                    partial(self._multiple_choice, stage, questions),
                )
                for name, questions in packs.items()
            }
        return result

    def _held_out(self, model: Decoder) -> Result:
        from pion.evaluate import held_out

        stream = self._stream(self.text, "held_out")
        scorer = self._scorer(model, self.job.data.seq_len)
        token_bytes = self.tokenizer.token_bytes()
        return dataclasses.asdict(held_out(scorer, stream, self._rows(stream), token_bytes))

    def _responses(self) -> Result:
        from pion.evaluate import responses

        stream = self._stream(self.conversations, "held_out")
        scorer = self._scorer(self._decoder("sft"), self.job.sft_seq_len)
        end_of_text = self.tokenizer.end_of_text
        return dataclasses.asdict(responses(scorer, stream, self._rows(stream), end_of_text))

    def _continuations(self) -> list[Question]:
        """Questions that prepare cut from held-out text; none where the data came as ids."""
        from pion.multiple_choice import read_questions

        if self.pretrain_data is None or not (self.pretrain_data / CHOICES).exists():
            return []
        return read_questions(self.pretrain_data / CHOICES)[: self.job.evaluate.continuations]

    def _multiple_choice(self, stage: str, questions: list[Question]) -> Result:
        from pion.multiple_choice import multiple_choice

        model = self._decoder(stage)
        scorer = self._scorer(model, model.config.seq_len)
        return dataclasses.asdict(multiple_choice(scorer, self.tokenizer, questions))

    def _scorer(self, model: Decoder, seq_len: int) -> Scorer:
        """Return how `model` is measured on rows of `seq_len` tokens."""
        from pion.evaluate import Scorer

        micro_batch = max(1, TOKENS_AT_ONCE[self.device.type] // seq_len)
        vocab_size = self.tokenizer.vocab_size
        return Scorer(model, vocab_size, micro_batch, self.dtype, self._on_batch)

    def _decoder(self, stage: str) -> Decoder:
        """The model of `stage`, on the device; one is kept at a time."""
        from pion.load import load_decoder

        if self._loaded is None or self._loaded[0] != stage:
            self._loaded = None  # freed before the next one takes its memory
            self._loaded = stage, load_decoder(self.models[stage]).to(self.device)
        return self._loaded[1]

    # ------------------------------------------------------------ baselines

    def _untrained(self) -> Result:
        """The weights that pretraining starts from."""
        import torch

        from pion.model.decoder import Decoder

        self._loaded = None
        torch.manual_seed(self.job.seed)
        return self._held_out(Decoder(self.job.model_config_resolved()).to(self.device))

    def _ngram(self) -> Result:
        """Counts the first `evaluate.ngram_tokens` tokens of the training stream."""
        import numpy as np

        from pion import ngram
        from pion.evaluate import summarize

        section = self.job.evaluate
        train = self._stream(self.text, "train", window=NGRAM_WINDOW)
        wanted = -(-section.ngram_tokens // self.job.data.seq_len)
        rows = [train.row(i).tokens for i in range(min(wanted, train.total_rows))]
        model = ngram.fit(np.stack(rows), self.tokenizer.vocab_size, section.ngram_order)
        held_out = self._stream(self.text, "held_out")
        measured = [held_out.row(i) for i in self._rows(held_out)]
        targets = np.stack([row.targets for row in measured])
        nll = np.zeros(targets.shape)  # the last target of a row is never counted
        nll[:, :-1] = model.nll(np.stack([row.tokens for row in measured]))
        result = dataclasses.asdict(summarize(nll, targets, self.tokenizer.token_bytes()))
        return {"order": model.order, **result, "train_tokens": model.train_tokens}

    # ------------------------------------------------------------ lm-eval

    def _lm_eval(self) -> Result:
        """Each task on the final model, which is exported once if any task is still to run."""
        import torch

        from pion.export import export_model
        from pipeline.stages.lm_eval import run_task

        torch.cuda.empty_cache()  # lm-eval runs in processes of its own, on the same card
        section = self.job.evaluate.lm_eval
        results: Result = {}
        with tempfile.TemporaryDirectory(prefix="pion-export-") as folder:
            exported = Path(folder) / "model"

            def run(task: str) -> Result:
                if not exported.exists():
                    final = list(self.models.values())[-1]
                    export_model(final, self.tokenizer_path, exported)
                include = section.include_path
                return run_task(
                    task,
                    exported,
                    include_path=self.job.input_path(include) if include else None,
                    working_folder=self.job.folder,
                    limit=section.limit,
                    device=self.device.type,
                    sleep=self.sleep,
                )

            for task in section.tasks:
                results[task] = self._part(
                    f"lm_eval.{task}", f"lm-eval task {task}", partial(run, task)
                )
        return results

    # ------------------------------------------------------------ data and machine

    @cached_property
    def text(self) -> PreparedData | None:
        return _open(self.pretrain_data)

    @cached_property
    def conversations(self) -> PreparedData | None:
        return _open(self.sft_data)

    def _stream(
        self, data: PreparedData | None, split: str, window: int | None = None
    ) -> RowStream:
        assert data is not None
        window = window or self.job.data.window
        return data.stream(split, self.job.seed, window, cache=self._shard_cache)

    def _shard_cache(self) -> ShardCache:
        from pipeline.data.shard_cache import ShardCache, default_folder

        if self._cache is None:
            budget = int(self.job.hardware.shard_cache_gb * 1e9)
            self._cache = ShardCache(default_folder(), budget)
        return self._cache

    def _rows(self, stream: RowStream) -> range:
        return range(min(self.job.evaluate.final_rows, stream.total_rows))

    @property
    def tokenizer_path(self) -> Path:
        data = self.text or self.conversations
        assert data is not None
        return data.tokenizer_path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from pion.data.tokenizer import Tokenizer

        return Tokenizer.from_file(self.tokenizer_path)

    @cached_property
    def device(self) -> torch.device:
        from pion.train.hardware import pick_device

        return pick_device()

    @cached_property
    def dtype(self) -> torch.dtype:
        import torch

        from pion.train.hardware import pick_dtype

        name = pick_dtype(self.job.hardware.dtype, self.device)
        return torch.bfloat16 if name == "bfloat16" else torch.float32


def _open(folder: Path | None) -> PreparedData | None:
    from pipeline.data.prepared import open_data

    return None if folder is None else open_data(folder)
