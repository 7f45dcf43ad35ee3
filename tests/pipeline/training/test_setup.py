"""What a worker opens at the start of a stage."""

import dataclasses
import json
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

import pion
from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan
from pipeline.data.hub import download_shard
from pipeline.job.digest import digest_job
from pipeline.stages.prepare import prepare_part
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.claim import claim_run
from pipeline.state.head import data_key
from pipeline.state.owner import Owner
from pipeline.training import setup
from pipeline.training.context import TrainingContext
from pipeline.training.setup import SAMPLE_TOKENS, _trainer, prompt_ids, sample_texts, start_stage
from pipeline.training.stage_data import open_stage_data
from pipeline.training.stage_model import StageModel
from pipeline.training.train_request import Group, TrainRequest
from tests.support.corpora import make_job, write_corpus
from tests.support.in_process_uploader import InProcessUploader
from tests.support.tiny_config import tiny_config


@pytest.mark.parametrize("documents", [True, False])
def test_a_worker_trains_and_evaluates_within_documents_if_the_job_says_so(tmp_path, documents):
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path, data={"documents": documents}, store=str(tmp_path / "runs"))
    prepare_part(job, "pretrain", tmp_path / "data", lambda message: None)
    request = TrainRequest.of(job, digest_job(job), Owner.me(), ["pretrain"])
    arrived = TrainRequest(**json.loads(json.dumps(dataclasses.asdict(request))))
    data = open_stage_data(arrived.load_job(), "pretrain", tmp_path / "data", download_shard)
    for stream in (data.train, data.held_out):
        batch = stream.batch(range(8))
        if not documents:
            assert batch.documents is None
            continue
        begins = batch.tokens == data.tokenizer.end_of_text
        assert begins.any()
        assert torch.equal(batch.documents, begins.cumsum(dim=1))


@pytest.mark.parametrize(("fsdp", "may"), [("auto", True), (False, False)])
def test_ranks_may_divide_a_model_that_does_not_fit_if_the_job_leaves_that_open(
    tmp_path, fsdp, may
):
    write_corpus(tmp_path / "corpus.jsonl", 60)
    store = str(tmp_path / "runs")
    job = make_job(tmp_path, store=store, hardware={"fsdp": fsdp})
    prepare_part(job, "pretrain", tmp_path / "data", lambda message: None)
    request = TrainRequest.of(job, digest_job(job), Owner.me(), ["pretrain"])
    context = TrainingContext(request, Group(), lambda message: None, lambda: False)
    context.watchdog.close()
    data = open_stage_data(context.job, "pretrain", tmp_path / "data", download_shard)
    model = Decoder(context.job.model_config_resolved())
    start = StageModel(model, ComputePlan(threads=1))
    begun = _trainer(context, "pretrain", data, start)
    begun.close()
    assert begun.may_divide == may


@pytest.fixture
def claimed(tmp_path, monkeypatch):
    """A run whose rows are prepared, and what its training process has."""
    write_corpus(tmp_path / "corpus.jsonl", 60)
    job = make_job(tmp_path, store=str(tmp_path / "runs"))
    prepare_part(job, "pretrain", tmp_path / "data", lambda message: None)
    monkeypatch.setattr("pipeline.training.setup.bring_data", lambda *_: tmp_path / "data")
    # To predict the memory of a step takes longer than all the rest.
    plan = ComputePlan(threads=1)
    monkeypatch.setattr("pipeline.training.setup.choose_plan", lambda *_: plan)
    request = TrainRequest.of(job, digest_job(job), Owner.me(), ["pretrain"])
    context = TrainingContext(request, Group(), lambda message: None, lambda: False)
    claim = claim_run(context.run, Owner.me())
    claim.commit(lambda head: head.with_data({"pretrain": data_key("a" * 64, "b" * 32)}))
    yield context, claim
    context.watchdog.close()
    claim.release()


def test_the_plan_is_applied_before_a_model_is_there(claimed, monkeypatch):
    """The model may be measured before there is a trainer."""
    real, threads, before = setup.stage_model, list[int](), torch.get_num_threads()

    def noting(*given):
        threads.append(torch.get_num_threads())
        return real(*given)

    monkeypatch.setattr(setup, "stage_model", noting)
    torch.set_num_threads(3)
    try:
        start_stage(claimed[0], "pretrain").close()
    finally:
        torch.set_num_threads(before)
    assert threads == [1]


def test_a_stage_that_resumes_lets_the_checkpoint_go_once_the_trainer_has_it(claimed):
    context, claim = claimed
    series = CheckpointSeries("pretrain", context.request.digests["pretrain"], lambda state: {})
    with closing(start_stage(context, "pretrain")) as begun:
        state = begun.trainer.state()
        uploader = InProcessUploader(context.run.store)
        checkpointer = Checkpointer(claim, series, uploader=uploader)
        assert checkpointer.save(state.model, state.optimizer, state.meta)
        checkpointer.close()
    with closing(start_stage(context, "pretrain")) as resumed:
        assert resumed.why == "continues after step 0"
        assert resumed.restored.found.folder is not None
        assert resumed.restored.saved is None


# ---------------------------------------------------------------- samples


TEXTS = ("", "plain", "words only and more words")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["plain words only"], 262)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=tokenizer.vocab_size, seq_len=128))


def in_own_format(tokenizer):
    return ChatFormat("nowhere/tokenizer.json", tokenizer)


def test_prompts_are_continued_together_as_each_would_be_alone(model, tokenizer):
    prompts = [prompt_ids(model, in_own_format(tokenizer), text, chat=False) for text in TEXTS]
    steps = []
    texts = sample_texts(
        model, in_own_format(tokenizer), prompts, chat=False, on_token=lambda: steps.append(None)
    )
    end = tokenizer.end_of_text
    alone = [
        list(pion.generate(model, ids, stop_ids=[end], max_tokens=SAMPLE_TOKENS, seed=0))
        for ids in prompts
    ]
    assert texts == [tokenizer.decode(new) for new in alone]
    assert len(steps) == sum(len(new) for new in alone)


def test_an_empty_prompt_starts_from_end_of_text(model, tokenizer):
    assert prompt_ids(model, in_own_format(tokenizer), "", chat=False) == [tokenizer.end_of_text]


def test_a_prompt_that_is_too_long_is_refused_alone(model, tokenizer):
    with pytest.raises(BadInput, match="the model's context is 128 tokens"):
        prompt_ids(model, in_own_format(tokenizer), "a " * 200, chat=True)


def test_no_prompts_are_no_texts(model, tokenizer):
    assert sample_texts(model, in_own_format(tokenizer), [], chat=True, on_token=lambda: None) == []


def test_a_stage_says_which_attention_its_card_has(monkeypatch):
    said, hardware = [], SimpleNamespace(dtype="auto")
    job = SimpleNamespace(has_documents=lambda stage: True, hardware=hardware)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    context, config = SimpleNamespace(job=job, report=said.append), tiny_config(head_dim=32)
    setup._tell_card(context, "pretrain", ComputePlan("cuda:0"), config)
    assert [note.text.partition(",")[0] for note in said] == ["attention: flex attention"]
