"""adapter.json is read as it was written, and anything else in its place is refused by name."""

import json

import pytest

from pion.config.lora import RECORD, Adapter, BaseModel, Lora, read_record, require_base
from pion.errors import BadInput

ADAPTER = Adapter(Lora(8, 16.0, ("q_proj",)), BaseModel("user/model", "a" * 64, "b" * 40))


def written(folder, **changes):
    record = json.loads(ADAPTER.to_json())
    for section, fields in changes.items():
        record[section] |= fields
    (folder / RECORD).write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "adapter", [ADAPTER, Adapter(Lora(base_dtype="bfloat16"), BaseModel("checkpoints/pretrain/1"))]
)
def test_a_record_is_read_as_it_was_written(tmp_path, adapter):
    (tmp_path / RECORD).write_bytes(adapter.to_json())
    assert read_record(tmp_path) == adapter


def test_a_folder_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": {"rank": 0}}, "rank: 0 must be"),
        ({"lora": {"rank": "8"}}, "rank: '8' must be"),
        ({"lora": {"alpha": True}}, "alpha: True must be"),
        ({"lora": {"targets": 5}}, "lora.targets is 5"),
        ({"lora": {"targets": [5]}}, "lora.targets is [5]; it must be names"),
        ({"lora": {"targets": "q_proj"}}, "it must be all-linear or a list"),
        ({"lora": {"base_dtype": "int4"}}, "base_dtype: 'int4'"),
        ({"lora": {"dora": True}}, "lora has the fields"),
        ({"base": {"name": ""}}, "base.name is ''"),
        ({"base": {"name": "x" * 5000}}, "it must be the name of a model"),
        ({"base": {"sha256": "A" * 64}}, "base.sha256 is"),
        ({"base": {"commit": "main"}}, "base.commit is 'main'"),
    ],
)
def test_a_record_that_we_did_not_write_is_refused(tmp_path, changes, told):
    with pytest.raises(BadInput) as refused:
        read_record(written(tmp_path, **changes))
    message = str(refused.value)
    assert message.startswith(str(tmp_path / RECORD))
    assert told in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"lora": {}}', b'{"lora": 3, "base": 3}', b"\xff"]
)
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(BadInput, match=RECORD):
        read_record(tmp_path)


def test_only_the_recorded_base_is_accepted():
    require_base(ADAPTER.base, "a" * 64, "here")
    require_base(BaseModel("user/model"), "c" * 64, "here")  # peft records no hash
    with pytest.raises(BadInput, match="here is an adapter of user/model with the tensors aaa"):
        require_base(ADAPTER.base, "c" * 64, "here")
