import gc
import json
import math
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pion.data.chat.conversation import Turn, tokenize
from pion.data.chat.packing import pack
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput, Interrupted
from pion.evaluation.item_scores import unpack
from pion.model.decoder import Decoder
from pipeline.report.results import Evaluated, numbers_of
from pipeline.stages.evaluate import evaluate_run
from pipeline.stages.measures import Parts, TrainedRun
from pipeline.stages.requirements import KINDS, _no_number
from pipeline.state.record_json import build
from tests.support.jobs import tiny_job
from tests.support.scripts import python_that

SEQ_LEN = 64
TEXT = ["the cat sat on the mat. ", "a dog ate the bone. ", "return a new list of the items. "]


def evaluated(*args):
    """Evaluate a run. Its results can be read, and each number can be named in publish.require."""
    results = evaluate_run(*args)
    build(Evaluated, results, "HEAD.json")
    for name in numbers_of({model: of for model, of in results.items() if model != "lm_eval"}):
        model = name.partition(".")[0]
        assert "nothing called" not in str(_no_number(KINDS[model], name.split(".")))
    return results


class Folder(Parts):
    """Parts in memory. After `room` parts, the machine goes away."""

    def __init__(self, room=1000):
        super().__init__(lambda note: None)
        self.kept: dict[str, str] = {}
        self.room = room

    def load(self, name):
        return json.loads(self.kept[name]) if name in self.kept else None

    def save(self, name, result):
        if len(self.kept) == self.room:
            raise KeyboardInterrupt
        assert name not in self.kept
        self.kept[name] = json.dumps(result)
        return result


class World:
    """A job, its prepared data and two checkpoints."""

    def __init__(self, root):
        self.root = root
        self.tokenizer = train_bpe([*TEXT, "<|user|>\n<|assistant|>\n"], 300)
        texts, talks = self._text(root / "pretrain"), self._conversations(root / "sft")
        self.data = {"pretrain": texts, "sft": talks}
        self.models = {
            stage: self._checkpoint(root / "checkpoints" / stage, seed)
            for stage, seed in (("pretrain", 1), ("sft", 2))
        }

    def job(self, **evaluate):
        settings = {"final_rows": 20, "continuations": 6, "ngram_tokens": 4000, **evaluate}
        shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16}
        rows = {"vocab_size": self.tokenizer.vocab_size + 6, "seq_len": SEQ_LEN}
        job = tiny_job(
            model={**shape, **rows},
            tokenizer={"file": "tokenizer.json"},
            data={"seq_len": SEQ_LEN, "sources": [{"kind": "text", "path": "text"}]},
            sft__seq_len=SEQ_LEN,
            evaluate=settings,
            hardware={"dtype": "float32"},
        )
        job._folder = self.root
        return job

    def run(self, job, parts, sleep=lambda seconds: None, start=None, **changed):
        """Return the results and the computed parts; `changed` are fields of what was trained."""
        said = []
        trained = TrainedRun(**{"models": self.models, "data": self.data} | changed)
        parts.say = lambda note: said.append(note.text)
        return evaluated(job, trained, parts, sleep, start), said

    def _text(self, folder):
        rng = np.random.default_rng(0)
        for split, documents in (("train", 400), ("held_out", 60)):
            where = folder / "0" / split
            writer = ShardWriter(
                where, seq_len=SEQ_LEN, vocab_size=self.tokenizer.vocab_size, rows_per_shard=64
            )
            for _ in range(documents):
                text = "".join(rng.choice(TEXT, rng.integers(1, 6)))
                ids = [*self.tokenizer.encode(text), self.tokenizer.end_of_text]
                writer.append_documents(np.array(ids), np.array([len(ids)]))
            self._manifest("tokens", writer, where)
        questions = [
            {"context": "the cat sat on the", "choices": [" mat.", " bone.", " list."], "answer": 0}
        ]
        (folder / "choices.jsonl").write_text("\n".join(json.dumps(q) for q in questions * 9))
        return self._dataset("pretrain", folder)

    def _conversations(self, folder):
        turns = [Turn("user", "where did the cat sit?"), Turn("assistant", "on the mat.")]
        conversation = tokenize(self.tokenizer, turns)
        for split in ("train", "held_out"):
            where = folder / "0" / split
            size = self.tokenizer.vocab_size
            writer = ShardWriter(
                where, seq_len=SEQ_LEN, vocab_size=size, rows_per_shard=64, conversations=True
            )
            packed = pack([conversation] * 12, SEQ_LEN, self.tokenizer.pad)
            writer.append_rows(packed.ids, packed.flags)
            self._manifest("conversations", writer, where)
        return self._dataset("sft", folder)

    def _manifest(self, kind, writer, folder):
        shards = writer.finish()
        Manifest(kind, SEQ_LEN, self.tokenizer.vocab_size, shards).write(folder / "manifest.json")

    def _dataset(self, part, folder):
        self.tokenizer.save(folder / "tokenizer.json")
        source = {"kind": "text", "weight": 1.0, "folder": "0"}
        dataset = {"part": part, "sources": [source], "report": {}}
        (folder / "dataset.json").write_text(json.dumps(dataset))
        return folder

    def _checkpoint(self, folder, seed):
        config = self.job().model_config_resolved()
        torch.manual_seed(seed)
        folder.mkdir(parents=True)
        save_file(Decoder(config).state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world):
    """The results of an uninterrupted evaluation, and its parts in order, said and kept."""
    before = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    parts = Folder()
    results, said = world.run(world.job(), parts)
    # Checkpoints and data are only read.
    assert before == {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    return results, said, parts


def test_results_hold_every_model_and_baseline_under_the_names_the_card_uses(world, unbroken):
    results, said, parts = unbroken
    text = {"loss", "loss_sem", "perplexity", "bits_per_byte", "bits_per_byte_sem"}
    text |= {"tokens", "bytes", "rows"}
    chat = {"response_loss", "response_loss_sem", "stop_accuracy", "stop_accuracy_sem"}
    chat |= {"false_stop_rate", "ends", "others"}
    assert {name: set(found) for name, found in results.items()} == {
        "pretrain": text | chat | {"calibration", "continuations"},
        "sft": text | chat | {"calibration", "continuations"},
        "untrained": text | {"calibration"},
        "ngram": text | {"order", "train_tokens"},
    }
    assert results["pretrain"]["calibration"]["tokens"] == results["pretrain"]["tokens"]
    assert results["pretrain"]["continuations"]["questions"] == 6
    assert results["pretrain"]["continuations"]["chance"] == pytest.approx(1 / 3)
    measured = {(r["rows"], r["tokens"], r["bytes"]) for r in results.values()}
    assert len(measured) == 1  # all on the same text
    assert results["pretrain"]["rows"] == 20
    assert len(said) == len(set(said)) == 8
    # A finished evaluation loads nothing and computes nothing.
    gone = {stage: world.root / "gone" for stage in world.models}
    assert world.run(world.job(), parts, models=gone) == (results, [])


def test_baselines_are_what_they_say(world, unbroken):
    results, *_ = unbroken
    assert results["ngram"]["order"] == 4
    assert results["ngram"]["train_tokens"] == math.ceil(4000 / SEQ_LEN) * SEQ_LEN
    assert results["ngram"]["loss"] < 1  # three repeated sentences
    uniform = math.log(world.tokenizer.vocab_size)
    assert results["untrained"]["loss"] == pytest.approx(uniform, abs=0.1)
    assert results["untrained"]["loss"] != results["pretrain"]["loss"] != results["sft"]["loss"]


def test_text_is_measured_within_documents_if_the_job_trains_so(world, unbroken):
    job = world.job(continuations=0)
    job.data.documents = True
    within, whole = world.run(job, Folder())[0], unbroken[0]
    for model in ("pretrain", "sft", "untrained"):
        assert within[model]["loss"] != whole[model]["loss"]
        assert within[model]["tokens"] == whole[model]["tokens"]
    assert within["ngram"] == whole["ngram"]
    assert within["sft"]["response_loss"] == whole["sft"]["response_loss"]


def test_the_untrained_model_is_the_one_that_pretraining_starts_from(world):
    job = world.job()
    torch.manual_seed(job.seed)
    start = Decoder(job.model_config_resolved())
    folder = world.root / "checkpoints" / "start"
    folder.mkdir()
    save_file(start.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(start.config.to_dict()))
    results, _ = world.run(job, Folder(), models={"pretrain": folder})
    assert results["pretrain"]["loss"] == results["untrained"]["loss"]


@pytest.mark.parametrize(
    ("room", "between"),
    [
        *((2, False), (6, False), (2, True)),
        *(pytest.param(room, False, marks=pytest.mark.soak) for room in (0, 5)),
    ],
)
def test_an_interrupted_evaluation_does_only_what_is_left(room, between, world, unbroken):
    """The machine goes away as a part is kept, or a stop comes between two batches."""
    expected, every, _ = unbroken
    parts = Folder(1000 if between else room)

    def stop(seconds):
        if between and len(parts.kept) == room:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted if between else KeyboardInterrupt):
        world.run(world.job(), parts, sleep=stop)
    assert len(parts.kept) == room
    parts.room = 1000
    assert world.run(world.job(), parts) == (expected, every[room:])


def test_where_another_owner_kept_a_part_first_its_result_counts(world, monkeypatch):
    models = weakref.WeakSet[Decoder]()
    make = Decoder.__init__

    def noted(self, *given, **named):
        make(self, *given, **named)
        models.add(self)

    class Slower(Folder):
        def load(self, name):
            if name == "ngram":
                gc.collect()
                assert not models, "no model takes memory while n-grams are counted"
            return super().load(name)

        def save(self, name, result):
            assert models or not name.startswith(("pretrain", "sft")), "they were noted"
            baseline = name in ("ngram", "untrained.held_out")
            return super().save(name, {**result, "loss": 1.5} if baseline else result)

    monkeypatch.setattr(Decoder, "__init__", noted)
    results, _ = world.run(world.job(), Slower())
    assert results["untrained"]["loss"] == results["ngram"]["loss"] == 1.5


def test_what_the_job_does_not_have_is_left_out(world):
    sft = {"sft": world.models["sft"]}
    talks = {"sft": world.data["sft"]}
    without_text, _ = world.run(world.job(), Folder(), models=sft, data=talks)
    assert set(without_text) == {"sft"}
    assert "response_loss" in without_text["sft"]
    assert "loss" not in without_text["sft"]
    results, _ = world.run(world.job(ngram_order=0, continuations=0), Folder())
    assert "ngram" not in results
    assert "continuations" not in results["pretrain"]


# ---------------------------------------------------------------- packs


@pytest.fixture
def pack_file(world):
    path = world.root / "facts.jsonl"
    question = {"context": "a dog ate the", "choices": [" bone.", " mat."], "answer": 0}
    path.write_text("\n".join([json.dumps(question)] * 3))
    yield path
    path.unlink()


def test_packs_are_asked_of_every_model_under_their_file_names(world, pack_file):
    results, _ = world.run(world.job(packs=["facts.jsonl"]), Folder())
    for stage in ("pretrain", "sft"):
        assert results[stage]["packs"]["facts"]["questions"] == 3
        assert results[stage]["packs"]["facts"]["chance"] == 0.5
    with pytest.raises(BadInput, match="two packs are called 'facts'"):
        world.run(world.job(packs=["facts.jsonl", "./facts.jsonl"]), Folder())
    # A broken pack stops before anything is computed.
    pack_file.write_text(pack_file.read_text() + '\n{"context": "a"}')
    parts = Folder()
    with pytest.raises(BadInput, match=r"facts\.jsonl:4: not a question: choices, answer missing"):
        world.run(world.job(packs=["facts.jsonl"]), parts)
    assert not parts.kept


# ---------------------------------------------------------------- lm-eval


def test_an_lm_eval_task_that_can_not_run_is_listed_with_its_reason_and_not_tried_again(
    world, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    job, parts = world.job(lm_eval={"tasks": ["arc_easy"]}), Folder()
    results, said = world.run(job, parts)
    reason = results["lm_eval"]["arc_easy"]["skipped"]
    assert f"evaluate: lm-eval task arc_easy is skipped: {reason}" in said
    assert reason == "lm-eval is not installed here: uv sync --extra evaluate"
    again, said = world.run(job, parts)
    assert (again, said) == (results, [])


# Writes what lm-eval gives, and how often it was asked.
ANSWERS = """
import json
request = json.loads(sys.argv[-1])
with open("asked.jsonl", "a") as file:
    file.write(json.dumps(request) + chr(10))
items = {"lm_eval.sums acc": {"key": {"rule": "r"}, "n": 1, "right": "gA=="}}
answer = {"acc": 1.0, "asked": {"form": "chat"}, "by_item": items}
open(request["out"] + "/answer.json", "w").write(json.dumps(answer))
"""


@pytest.fixture
def answering(world, monkeypatch):
    """Let a program answer in place of lm-eval. Return what returns all requests so far."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(ANSWERS, world.root))
    asked = world.root / "asked.jsonl"
    asked.unlink(missing_ok=True)
    return lambda: [json.loads(line) for line in asked.read_text().splitlines()]


@pytest.mark.parametrize(
    "chat", ["auto", *(pytest.param(chat, marks=pytest.mark.slow) for chat in (True, False))]
)
def test_a_task_is_asked_as_the_job_says_and_the_score_of_each_question_is_kept(
    chat, world, answering
):
    lm_eval = {"tasks": ["sums"], "chat": chat, "limit": 3}
    job, parts = world.job(lm_eval=lm_eval, continuations=0), Folder()
    results, _ = world.run(job, parts)
    assert results["lm_eval"] == {"sums": {"acc": 1.0, "asked": {"form": "chat"}}}
    kept = json.loads(parts.kept["by_item"])
    assert unpack(kept["sft.lm_eval.sums acc"]).scores.tolist() == [1]
    assert "sft.bits_per_byte" in kept
    world.run(job, parts)
    (request,) = answering()
    assert (request["chat"], request["tuned"], request["limit"]) == (chat, True, 3)
    assert request["tokenizer"] == str(world.data["sft"] / "tokenizer.json")
