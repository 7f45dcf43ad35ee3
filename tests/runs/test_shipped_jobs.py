"""The job files that come with Pion are valid and match the published recipe."""

import functools

import pytest
import torch

from pion.data.tokens.tokenizer import Tokenizer
from pion.model.decoder import Decoder
from pipeline.job.file import load_job
from pipeline.job.train_sections import pion2
from tests.paths import JOBS
from tests.pion.model.test_decoder import SIZES
from tests.support.published_models import load_shipped

SHIPPED = {path.stem for path in JOBS.glob("pion*.yaml")}
WEIGHTS = {name: weights for name, weights, *_ in SIZES if name in SHIPPED}
PION2 = {name: weights for name, weights in WEIGHTS.items() if name.startswith("pion2-")}
PARAMETERS = {name: weights for name, weights in WEIGHTS.items() if name not in PION2}
tokenizer_of = functools.cache(Tokenizer.from_file)


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


def test_a_job_file_repeats_no_default():
    for name in PARAMETERS:
        job = load_job(JOBS / f"{name}.yaml")
        for stage in ("pretrain", "sft"):
            section = job.section(stage)
            for field in section.model_fields_set - {"sources"}:
                default = type(section).model_fields[field].default
                assert getattr(section, field) != default, f"{name}: {stage}.{field}"
