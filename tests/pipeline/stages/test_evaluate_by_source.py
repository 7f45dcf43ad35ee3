"""Where phases mix the sources, each source is measured on equally many rows and none is hidden."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from pion.data.stream import RowStream
from pion.evaluation.held_out import Scorer, evaluate
from pion.evaluation.item_scores import unpack
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan
from pipeline.data.hub import download_shard
from pipeline.data.prepared import held_out_rows, open_data
from pipeline.job.digest import digest_job
from pipeline.report.paired import compare
from pipeline.stages.measures import TrainedRun
from pipeline.stages.prepare import prepare_part
from pipeline.state.owner import Owner
from pipeline.state.run_state import BY_ITEM
from pipeline.training.context import TrainingContext
from pipeline.training.setup import Setup, _trainer
from pipeline.training.stage_data import open_stage_data
from pipeline.training.stage_model import StageModel
from pipeline.training.train_request import Group, TrainRequest
from tests.pipeline.stages.test_evaluate import Folder
from tests.pipeline.stages.test_evaluate import evaluated as run_evaluation
from tests.support.corpora import SEQ_LEN, make_job, write_corpus

ROWS = 7
WEB, BOTH = [{"mix": {"web": 1}}], [{"until": 5, "mix": {"web": 3, "code": 1}}, {"seq_len": 64}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources, the prepared rows of both, and two models."""
    folder = tmp_path_factory.mktemp("mixed")
    write_corpus(folder / "corpus.jsonl", 120)
    numbers = ({"text": " ".join(str(n * n + i) for n in range(9, 60))} for i in range(40))
    (folder / "code.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbers))
    prepare_part(mixed(folder, BOTH), "pretrain", folder / "data", lambda message: None)
    for seed in (1, 2):
        torch.manual_seed(seed)
        (folder / str(seed)).mkdir()
        config = mixed(folder, BOTH).model_config_resolved()
        save_file(Decoder(config).state_dict(), folder / str(seed) / "model.safetensors")
        (folder / str(seed) / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def mixed(folder, phases):
    names = {"web": "corpus.jsonl", "code": "code.jsonl"}
    sources = [{"name": name, "kind": "jsonl", "path": path} for name, path in names.items()]
    evaluation = {"rows": ROWS, "final_rows": ROWS, "continuations": 0, "ngram_tokens": 10**6}
    pretrain = {"steps": 10, "global_batch": 4, "warmup_steps": 1, "phases": phases}
    data = {"sources": sources, "documents": True}
    return make_job(folder, data=data, pretrain=pretrain, evaluate=evaluation)


def evaluated(folder, phases, seed=1):
    """Return the results, and the scores of single documents by what they are of."""
    job, parts = mixed(folder, phases), Folder()
    trained = TrainedRun({"pretrain": folder / str(seed)}, {"pretrain": folder / "data"})
    results = run_evaluation(job, trained, parts, lambda seconds: None)
    kept = parts.load(BY_ITEM).items()
    measures = {name.partition(".")[2]: (of["key"], unpack(of)) for name, of in kept}
    return results, measures


def test_longer_rows_of_each_source_share_no_row(folder):
    _, rows = held_out_rows(mixed(folder, BOTH), open_data(folder / "data"), ROWS, 2)
    assert {name: [*own] for name, own in rows.items()} == {"web": [0, 2, 4], "code": [6, 8, 10]}


def test_every_model_has_equally_many_rows_of_each_source_and_their_plain_mean(folder):
    results, _ = evaluated(folder, BOTH)
    for model in ("pretrain", "untrained", "ngram"):
        found = results[model]
        assert {name: own["rows"] for name, own in found["sources"].items()} == {
            "web": ROWS,
            "code": ROWS,
        }
        for measure in ("loss", "bits_per_byte"):
            both = found["sources"].values()
            values, errors = zip(*((one[measure], one[f"{measure}_sem"]) for one in both))
            assert found[measure] == pytest.approx(sum(values) / 2)
            assert found[f"{measure}_sem"] == pytest.approx(math.hypot(*errors) / 2)
        for count in ("tokens", "bytes", "rows"):
            assert found[count] == sum(one[count] for one in found["sources"].values())


def test_the_rows_of_a_source_do_not_depend_on_the_mix(folder):
    (one, before), (other, after) = (evaluated(folder, phases) for phases in (WEB, BOTH))
    longer = other["pretrain"].pop("long_context")
    assert one["pretrain"] == other["pretrain"]
    assert longer["tokens"] > 0
    assert all(row.change == 0 for row in compare(before, after))


def test_two_runs_are_compared_by_the_documents_of_each_source(folder):
    (one, before), (other, after) = (evaluated(folder, BOTH, seed) for seed in (1, 2))
    rows = {row.name: row for row in compare(before, after)}
    apart = [rows[f"bits_per_byte.{name}"] for name in ("web", "code")]
    found = rows["bits_per_byte"]
    assert found.change == pytest.approx(sum(row.change for row in apart) / 2)
    assert found.sem == pytest.approx(math.hypot(*(row.sem for row in apart)) / 2)
    assert found.values == pytest.approx([of["pretrain"]["bits_per_byte"] for of in (one, other)])


def test_the_n_gram_model_counts_one_pass_over_the_first_mix_alone(folder):
    of_web, of_both = (evaluated(folder, phases)[0]["ngram"] for phases in (WEB, BOTH))
    data = open_data(folder / "data")
    rows = [data.manifest(source, "train").rows for source in data.sources]
    assert of_web["train_tokens"] == rows[0] * SEQ_LEN
    assert of_both["train_tokens"] == sum(rows) * SEQ_LEN
    code = [of["sources"]["code"]["bits_per_byte"] for of in (of_web, of_both)]
    assert code[1] < code[0] - 1


def test_while_training_the_loss_is_the_plain_mean_of_the_sources(folder):
    job = mixed(folder, BOTH)
    request = TrainRequest.of(job, digest_job(job), Owner.me(), ["pretrain"])
    context = TrainingContext(request, Group(), lambda message: None, lambda: False)
    context.watchdog.close()
    data = open_stage_data(context.job, "pretrain", folder / "data", download_shard)
    model = Decoder(job.model_config_resolved())
    start = StageModel(model, ComputePlan(threads=1))
    trainer = _trainer(context, "pretrain", data, start)
    found = Setup(context, "pretrain", trainer, data, None, "").evaluate(lambda: None)
    trainer.close()

    scorer, end = Scorer(model, data.tokenizer.vocab_size, 8), data.tokenizer.end_of_text
    alone = [evaluate(scorer, own, range(ROWS), end) for own in streams(folder)]
    assert list(found.by_source) == ["web", "code"]
    assert [*found.by_source.values()] == pytest.approx([one.loss for one in alone])
    assert found.loss == pytest.approx(sum(one.loss for one in alone) / 2)
    assert found.sem == pytest.approx(math.hypot(*(one.sem for one in alone)) / 2)
    assert (found.rows, found.tokens) == (2 * ROWS, sum(one.tokens for one in alone))


def streams(folder) -> list[RowStream]:
    """Return the held-out rows of each source alone, as a job of this source would read them."""
    data, job = open_data(folder / "data"), mixed(folder, BOTH)
    return [
        dataclasses.replace(data, sources=(source,)).stream(
            "held_out", job.seed, job.data.window, documents=True
        )
        for source in data.sources
    ]
