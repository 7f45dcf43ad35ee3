"""Whatever a config.json says, it is read or refused by the name of its field."""

import json

import pytest

from pion.errors import BadInput
from pipeline.base.find import read_config
from tests.support.published_models import PUBLISHED, REPOSITORIES, config_of


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_the_settings_of_published_models_are_read(repo, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(repo)))
    fields = PUBLISHED[REPOSITORIES[repo][0]][1]
    assert read_config(path).d_model == fields["hidden_size"]
    # Some files leave this out, and some have it as null.
    for architectures in ({}, {"architectures": None}):
        spelled = {k: v for k, v in config_of(repo).items() if k != "architectures"}
        path.write_text(json.dumps(spelled | architectures))
        assert read_config(path).seq_len == fields["max_position_embeddings"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("architectures", 3),
        ("architectures", ["LlamaForCausalLM2"]),
        ("auto_map", {"AutoModel": ["evil.Evil", None]}),
        ("auto_map", {"AutoModelForCausalLM": 3}),
        ("quantization_config", {}),
        ("quantization_config", "fp8"),
        ("model_type", 3),
    ],
)
def test_a_field_that_says_something_else_is_refused_by_its_name(field, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of("HuggingFaceTB/SmolLM2-135M") | {field: value}))
    with pytest.raises(BadInput, match=f"config.json: {field}"):
        read_config(path)
