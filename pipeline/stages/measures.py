"""Measures the models that a run has trained, and two baselines, one measure at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.console.messages import Note, Say
from pipeline.data.compared_text import find_text
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.mixes import source_names
from pipeline.job.stages import CONVERSING, TRAINING
from pipeline.models.program_parts import PROGRAM_PARTS
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pion.data.stream import RowStream
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.evaluation.held_out import Scorer
    from pion.evaluation.item_scores import ItemScores
    from pion.evaluation.one_text_per_row import OwnRows
    from pion.evaluation.questions import Question
    from pion.model.decoder import Decoder
    from pipeline.data.prepared import PreparedData
    from pipeline.data.shard_cache import Fetch, ShardCache

Result = dict[str, Any]
# Returns the part of a name, computed unless it is kept: (name, label, compute).
Part = Callable[[str, str, Callable[[], Result]], Result]
# What is measured before and after training: held-out conversations and text of the run, and a text
# that has nothing to do with the run.
MeasuredOn = Literal["conversations", "held_out", "text"]

# What models are compared by.
NAMES: Mapping[MeasuredOn, str] = {
    "conversations": "response_loss",
    "held_out": "bits_per_byte",
    "text": "text.bits_per_byte",
}
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 32_768}  # of a batch; halved when memory runs out
BEGINNINGS = 16  # of held-out rows, after which parts are measured
NGRAM_WINDOW = 1  # shards shuffled together: few remote shards are fetched for the baseline


@dataclass(frozen=True)
class StageStart:
    """The model that a stage starts from.

    Attributes:
        name: that of its results: a training stage, or `base`.
        folder: has the model.
        reference: of `prefer`, the folder with what the model gives for the answers; None if there
            is none that can be used, or if the loss needs none.
    """

    name: str
    folder: Path
    reference: Path | None = None


@dataclass(frozen=True)
class TrainedRun:
    """The models that a run has trained, and their data.

    Attributes:
        models: training stage → checkpoint folder, in the order of the stages.
        data: training stage → folder of the prepared data, of each stage that has some.
        fetch: downloads a shard of the text that is not on this machine.
        starts: the models that `prefer` and `reinforce` start from, by stage.
    """

    models: Mapping[str, Path]
    data: Mapping[str, Path]
    fetch: Fetch | None = None
    starts: Mapping[str, StageStart] = field(default_factory=dict)


class Measures:
    """Measures of a run's models. Every model gets the same rows and questions.

    The held-out rows are the first `evaluate.final_rows` of the held-out stream with the job's
    seed. If the phases of pretraining mix the sources, they are so many of each source. `on_batch`
    is called after each batch; an error that it raises ends the measure.
    """

    def __init__(self, job: Job, trained: TrainedRun, on_batch: Callable[[], None]) -> None:
        self.job, self.trained, self.on_batch = job, trained, on_batch
        self._loaded: tuple[str, Decoder] | None = None
        self._cache: ShardCache | None = None

    def close(self) -> None:
        """Free the model in memory and stop fetching shards."""
        import torch

        self._loaded = None
        torch.cuda.empty_cache()  # other processes use the same card next
        if self._cache is not None:
            self._cache.close()

    # ------------------------------------------------------------ models

    def on_rows(self, stage: str, kind: MeasuredOn) -> Result:
        """Measure the model of `stage` on rows. BY_ITEM has the sum of each document, packed: nats
        of conversations, bits of text. Two models that were measured on the same are compared by
        these sums."""
        import numpy as np

        from pion.data.shards import IGNORED
        from pion.evaluation.held_out import (
            by_document,
            calibrate,
            score,
            summarize_responses,
            target_bytes,
        )
        from pion.evaluation.item_scores import ItemScores

        rows, seq_len = self._compared_rows(kind)
        scorer = self.row_scorer(stage, seq_len)
        sources = self._by_source[1] if kind == "held_out" else {}
        measured = self._rows(rows, sources)
        scores = score(scorer, rows, measured)
        documents = rows.document_numbers(measured, self.tokenizer.end_of_text)
        counted = scores.targets != IGNORED
        if kind == "conversations":
            sizes, unit = counted, 1.0
            result: Result = {**summarize_responses(scores, self._end_of_turn(), documents)}
        else:
            sizes, unit = target_bytes(scores.targets, self.tokenizer.token_bytes()), math.log(2)
            result = self._text(scores.nll, scores.targets, documents, sources)
            result["calibration"] = calibrate(scores, documents)
        sums = [
            by_document(documents[part], counted[part], scores.nll[part], sizes[part])
            for part in sources.values() or [measured]
        ]
        numbers = np.repeat(range(len(sums)), [len(nats) for nats, _ in sums])
        nats, of = map(np.concatenate, zip(*sums))
        items = ItemScores(nats / unit, sizes=of, sources=numbers if sources else None)
        return result | {BY_ITEM: self._packed(items, kind)}

    def _text(
        self,
        nll: np.ndarray,
        targets: np.ndarray,
        documents: np.ndarray,
        sources: Mapping[str, range],
    ) -> Result:
        """Return how well a model predicts rows of text. Of `sources`, there is the plain mean,
        and each."""
        from pion.evaluation.held_out import mean_held_out, summarize

        token_bytes = self.tokenizer.token_bytes()
        each = {
            name: summarize(nll[rows], targets[rows], token_bytes, documents[rows])
            for name, rows in sources.items()
        }
        if not each:
            return dict(summarize(nll, targets, token_bytes, documents))
        return {**mean_held_out(list(each.values())), "sources": each}

    def _packed(self, documents: ItemScores, kind: MeasuredOn) -> Result:
        """Return the sums of documents packed, by the name of the measure."""
        from pion.evaluation.item_scores import pack

        name = NAMES[kind]
        packed = {name: {"key": self._same_documents(kind), **pack(documents)}}
        if kind == "held_out" and self.job.mixes:
            same, read = self.same_rows("pretrain"), digest_job(self.job).inputs["pretrain"]
            for source, of_source in zip(self._by_source[1], documents.by_source(), strict=True):
                key = same | {"data": read[f"input.data.pretrain.{source}"]}
                packed[f"{name}.{source}"] = {"key": key, **pack(of_source)}
        return packed

    def _same_documents(self, kind: MeasuredOn) -> Result:
        """Return what two runs have in common if they are measured on the same documents."""
        if kind == "text":
            return {"rows": self.job.evaluate.final_rows, "text": find_text(self.job).sha256}
        return self.same_rows("sft" if kind == "conversations" else "pretrain")

    def same_rows(self, part: str) -> Result:
        """Return what two runs have in common if they are measured on the same rows of a part of
        the data."""
        job = self.job
        rows = {"rows": job.evaluate.final_rows, "seed": job.seed, "window": job.data.window}
        return rows | {"data": digest_job(job).data[part]}

    def _end_of_turn(self) -> int:
        """Return the id that ends an answer in the chat format of the conversations."""
        from pion.data.chat.chat_format import ChatFormat

        with closing(ChatFormat(self.data["sft"].tokenizer_path, self.tokenizer)) as talks:
            return talks.end_of_turn

    def _compared_rows(self, kind: MeasuredOn) -> tuple[RowStream | OwnRows, int]:
        """Return the rows of what is measured, and their length in tokens."""
        if kind == "conversations":
            return self.rows_of("held_out", "sft"), self.job.sft_seq_len
        if kind == "held_out":
            return self.rows_of("held_out", "pretrain"), self.job.data.seq_len
        from pion.evaluation.one_text_per_row import own_rows

        texts, most = find_text(self.job).texts(), self.job.evaluate.final_rows
        return own_rows(self.tokenizer, texts, self.job.data.seq_len, most), self.job.data.seq_len

    def long_context(self, stage: str) -> Result:
        """Measure what the context beyond `data.seq_len` is worth to the model of `stage`; {} if no
        source has held-out text in rows so long."""
        from pion.evaluation.long_context import long_context
        from pipeline.data.prepared import held_out_rows

        short, length = self.job.data.seq_len, self.job.mix_phases[-1].length
        most = self.job.evaluate.final_rows
        stream, by_source = held_out_rows(self.job, self.data["pretrain"], most, length)
        rows = [i for source_rows in by_source.values() for i in source_rows]
        ends, token_bytes = self.tokenizer.end_of_text, self.tokenizer.token_bytes()
        scorer = self.row_scorer(stage, length * short)
        return long_context(scorer, stream, rows, short, token_bytes, ends) if rows else {}

    def multiple_choice(self, stage: str, name: str, questions: list[Question]) -> Result:
        """Put `questions` to the model of `stage`. `name` says what the answers are of."""
        from pion.evaluation.item_scores import item_scores, pack
        from pion.evaluation.multiple_choice import multiple_choice
        from pion.evaluation.questions import digest_of_questions

        result = multiple_choice(self.row_scorer(stage), self.tokenizer, questions)
        key = {"questions": digest_of_questions(questions)}
        items = {name: {"key": key, **pack(item_scores(result.credits))}}
        return {**result.record, BY_ITEM: items}

    def row_scorer(self, stage: str, seq_len: int | None = None) -> Scorer:
        """Return how the model of `stage` is measured on rows of `seq_len` tokens, or of its whole
        context."""
        from pion.evaluation.held_out import Scorer

        model = self._decoder(stage)
        micro_batch = max(1, TOKENS_AT_ONCE[self.device.type] // (seq_len or model.config.seq_len))
        return Scorer(model, self.tokenizer.vocab_size, micro_batch, self.dtype, self.on_batch)

    def part_alone(self, stage: str, name: str) -> Result:
        """Measure what a part of the model of `stage` brings after held-out beginnings."""
        length, rows = self.job.data.seq_len, self.rows_of("held_out", "pretrain")
        first = self._rows(rows, {})[:BEGINNINGS]
        return PROGRAM_PARTS[name].measured(
            self._decoder(stage),
            [rows.row(i).tokens[: max(1, length // 4)].tolist() for i in first],
            self.tokenizer.vocab_size,
            self.on_batch,
        )

    def continuations(self) -> list[Question]:
        """Return the questions that prepare cut from held-out text; none if there was no text."""
        from pion.evaluation.questions import read_questions
        from pipeline.data.prepared import CHOICES

        folder = self.trained.data.get("pretrain")
        if folder is None or not (folder / CHOICES).exists():
            return []
        return read_questions(folder / CHOICES)[: self.job.evaluate.continuations]

    def _decoder(self, stage: str) -> Decoder:
        """Return the model of `stage`, on the device. One model is kept at a time."""
        from pipeline.models.load import load_model_in

        if self._loaded is None or self._loaded[0] != stage:
            self._loaded = None  # free it before loading the next model
            folders = dict(self.trained.models)
            for start in self.trained.starts.values():
                folders.setdefault(start.name, start.folder)
            self._loaded = stage, load_model_in(folders[stage]).to(self.device)
        return self._loaded[1]

    # ------------------------------------------------------------ baselines

    def untrained(self) -> Result:
        """Measure the weights before pretraining on held-out text."""
        import torch

        from pion.model.decoder import Decoder

        self._loaded = None  # free it before the next model
        torch.manual_seed(self.job.seed)
        self._loaded = "untrained", Decoder(self.job.model_config_resolved()).to(self.device)
        result = without_items(self.on_rows("untrained", "held_out"))
        self._loaded = None  # the n-gram model is next, and takes much memory, too
        return result

    def ngram(self) -> Result:
        """Measure counts of the first `evaluate.ngram_tokens` training tokens on held-out text."""
        import numpy as np

        from pion.evaluation import ngram

        section = self.job.evaluate
        train = self.rows_of("train", "pretrain", window=NGRAM_WINDOW)
        wanted = -(-section.ngram_tokens // self.job.data.seq_len)
        rows = [train.row(i).tokens for i in range(min(wanted, train.total_rows))]
        model = ngram.fit(np.stack(rows), self.tokenizer.vocab_size, section.ngram_order)
        held_out, sources = self._by_source
        numbers = self._rows(held_out, sources)
        measured = [held_out.row(i) for i in numbers]
        targets = np.stack([row.targets for row in measured])
        nll = np.zeros(targets.shape)  # the last target of a row is never counted
        nll[:, :-1] = model.nll(np.stack([row.tokens for row in measured]))
        documents = held_out.document_numbers(numbers, self.tokenizer.end_of_text)
        scores = self._text(nll, targets, documents, sources)
        return {"order": model.order, **scores, "train_tokens": model.train_tokens}

    # ------------------------------------------------------------ data and machine

    @cached_property
    def data(self) -> dict[str, PreparedData]:
        """The prepared data of each training stage that has some, in the order of the stages."""
        from pipeline.data.prepared import open_data

        folders = self.trained.data
        return {stage: open_data(folders[stage]) for stage in TRAINING if stage in folders}

    @property
    def chat_path(self) -> Path:
        """The tokenizer.json of the final model, next to the chat format that the model learned."""
        stage = next(name for name in (*CONVERSING, "pretrain") if name in self.data)
        return self.data[stage].tokenizer_path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from pion.data.tokens.tokenizer import Tokenizer

        return Tokenizer.from_file(next(iter(self.data.values())).tokenizer_path)

    @cached_property
    def device(self) -> torch.device:
        from pion.train.hardware import pick_device

        return pick_device()

    @cached_property
    def dtype(self) -> torch.dtype:
        from pion.train.hardware import pick_dtype, torch_dtype

        return torch_dtype(pick_dtype(self.job.hardware.dtype, self.device))

    def rows_of(self, split: str, stage: str, window: int | None = None) -> RowStream:
        """Return the rows of "train" or "held_out" of a training stage, of mixed text those of the
        first mix. `window` is the job's unless it is given."""
        window, documents = window or self.job.data.window, self.job.within_documents
        read = self.job.seed, window, self._shard_cache, documents
        if stage != "pretrain" or not self.job.mixes:
            return self.data[stage].stream(split, *read)
        if split == "held_out":
            return self._by_source[0]
        first = replace(self.job.mix_phases[0], length=1)
        return self.data[stage].stream(split, *read, (source_names(self.job.data), [first]))

    @cached_property
    def _by_source(self) -> tuple[RowStream, dict[str, range]]:
        """The held-out rows of the text; where phases mix the sources, those of each source."""
        from pipeline.data.prepared import held_out_rows

        return held_out_rows(self.job, self.data["pretrain"], self.job.evaluate.final_rows)

    def _shard_cache(self) -> ShardCache:
        from pipeline.data.hub import download_shard
        from pipeline.data.shard_cache import ShardCache, default_folder

        if self._cache is None:
            budget = int(self.job.hardware.shard_cache_gb * 1e9)
            self._cache = ShardCache(default_folder(), budget, self.trained.fetch or download_shard)
        return self._cache

    def _rows(self, stream: RowStream | OwnRows, sources: Mapping[str, range]) -> range:
        if sources:
            return range(sum(map(len, sources.values())))
        return range(min(self.job.evaluate.final_rows, stream.total_rows))


def without_items(result: Result) -> Result:
    """Return what was measured, without the scores of single questions and documents."""
    return {name: value for name, value in result.items() if name != BY_ITEM}


@dataclass
class Parts(ABC):
    """Keeps finished parts, and computes the others. `say` gets a note as each of these starts."""

    say: Say

    @abstractmethod
    def load(self, name: str) -> Result | None:
        """Return the part as it was saved, or None."""

    @abstractmethod
    def save(self, name: str, result: Result) -> Result:
        """Keep a part durably; return the kept result, which another owner may have saved first."""

    def __call__(self, name: str, label: str, compute: Callable[[], Result]) -> Result:
        """Return the part of this name, computed unless it is kept; `label` says what it is."""
        result = self.load(name)
        if result is None:
            self.say(Note(f"evaluate: {label}"))
            result = self.save(name, compute())
        return result
