"""The job files that come with Pion are valid and match the published recipe."""

import functools

import pytest
import torch

from pion.data.tokens.tokenizer import Tokenizer
from pion.model.decoder import Decoder
from pion.train.schedule import lr_at
from pipeline.job import HubDataset, HubNpyShards
from pipeline.job.file import load_job
from pipeline.job.train_sections import pion2, settings_of
from tests.paths import JOBS
from tests.pion.model.test_decoder import SIZES
from tests.support.published_models import load_shipped

WEIGHTS = {name: weights for name, weights, *_ in SIZES if name.startswith("pion")}
PION2 = {name: weights for name, weights in WEIGHTS.items() if name.startswith("pion2-")}
PARAMETERS = {name: weights for name, weights in WEIGHTS.items() if name not in PION2}
tokenizer_of = functools.cache(Tokenizer.from_file)


@pytest.fixture(scope="module")
def small():
    return load_job(JOBS / "pion-small.yaml")


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_is_valid_and_named_like_its_file(path):
    assert load_shipped(path).name == path.stem


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_tokenizer_a_job_names_is_there_and_fits_its_model(path):
    job = load_shipped(path)
    if job.tokenizer is not None and job.tokenizer.file is not None:
        tokenizer = tokenizer_of(job.input_path(job.tokenizer.file))
        tokenizer.fits(job.model_config_resolved().vocab_size)
        assert tokenizer.vocab_size == 50_000


@pytest.mark.parametrize(("name", "parameters"), WEIGHTS.items())
def test_each_size_has_exactly_its_published_number_of_parameters(name, parameters):
    config = load_job(JOBS / f"{name}.yaml").model_config_resolved()
    with torch.device("meta"):
        model = Decoder(config)
    assert model.num_params() == parameters
    assert (config.seq_len, config.softcap) == (2048, None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_size_sees_as_many_tokens_per_parameter_as_the_published_recipe(name):
    job = load_job(JOBS / f"{name}.yaml")
    tokens = job.pretrain.steps * job.pretrain.global_batch * job.data.seq_len
    assert tokens / PARAMETERS[name] == pytest.approx(28.6, rel=0.01)


@pytest.mark.parametrize("name", PION2)
def test_each_size_of_pion_2_has_its_recipe_and_twenty_tokens_per_parameter(name):
    job = load_job(JOBS / f"{name}.yaml")
    tokens = job.pretrain.steps * job.pretrain.global_batch * job.data.seq_len
    assert tokens / PION2[name] == pytest.approx(20, rel=0.01)
    assert job.pretrain.recipe == "pion2"
    assert job.pretrain.model_fields_set >= pion2(1024, 1000).keys()
    assert job.data.documents


@pytest.mark.parametrize("name", PION2)
def test_no_document_of_pion_2s_data_has_to_be_read_twice(name):
    job = load_job(JOBS / f"{name}.yaml")
    tokens = job.pretrain.steps * job.pretrain.global_batch * job.data.seq_len
    (source,) = job.data.sources
    # FineWeb-Edu has about 1,030 of GPT-2's tokens in a document, and ours are about as long.
    assert source.max_documents * 1000 > tokens


def test_pion_small_reads_the_published_data_at_a_constant_batch(small):
    (source,) = small.data.sources
    assert isinstance(source, HubNpyShards)
    assert source.repo == "SuperGoatScriptGuy/PreprocessedMIXED"
    assert (small.pretrain.global_batch, small.data.seq_len) == (64, 2048)
    shard_bytes = small.data.shard_rows * small.data.seq_len * 4  # the shards hold int32
    assert small.data.window * shard_bytes < 20e9 / 10  # a few windows fit a 20 GB disk


def test_pion_small_pretrains_with_the_published_schedule(small):
    stage = settings_of(small.pretrain)
    assert (stage.steps, stage.optimizer, stage.weight_decay, stage.clip) == (
        22_500,
        "adamw",
        0.1,
        1.0,
    )
    assert (stage.beta1, stage.beta2, stage.eps) == (0.9, 0.95, 1e-8)
    rates = {step: stage.lr * lr_at(stage, step - 1) for step in range(1, 22_501)}
    assert rates[1] == pytest.approx(3e-4 / 1000)
    assert rates[500] == pytest.approx(1.5e-4)
    assert rates[1000] == rates[18_000] == 3e-4  # constant from the warm-up to the last 20 %
    assert rates[18_001] < 3e-4
    assert rates[20_250] == pytest.approx((3e-4 + 3e-5) / 2)  # half-way down a cosine
    assert rates[22_500] == pytest.approx(3e-5)


def test_pion_small_is_fine_tuned_with_the_published_schedule(small):
    (source,) = small.sft.sources
    assert isinstance(source, HubDataset)
    assert source.repo == "teknium/OpenHermes-2.5"
    stage = settings_of(small.sft)
    assert (stage.steps, stage.global_batch, stage.weight_decay) == (3000, 16, 0.01)
    rates = {step: stage.lr * lr_at(stage, step - 1) for step in range(1, 3001)}
    assert rates[100] == 2e-5
    assert rates[1550] == pytest.approx((2e-5 + 2e-6) / 2)
    assert rates[3000] == pytest.approx(2e-6)


def test_pion_small_is_evaluated_and_published(small):
    assert small.stages == ["prepare", "pretrain", "sft", "evaluate", "publish"]
    assert small.publish.license


def test_a_job_file_repeats_no_default():
    for name in PARAMETERS:
        job = load_job(JOBS / f"{name}.yaml")
        for stage in ("pretrain", "sft"):
            section = job.section(stage)
            for field in section.model_fields_set - {"sources"}:
                default = type(section).model_fields[field].default
                assert getattr(section, field) != default, f"{name}: {stage}.{field}"
