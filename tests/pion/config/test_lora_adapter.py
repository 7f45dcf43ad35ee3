"""adapter.json is read as it was written, and anything else in its place is refused by name."""

import pytest

from pion.config.lora import RECORD, Adapter, BaseModel, Lora, read_record, require_base

ADAPTER = Adapter(Lora(8, 16.0, ("q_proj",)), BaseModel("user/model", "a" * 64, "b" * 40))


@pytest.mark.parametrize(
    "adapter", [ADAPTER, Adapter(Lora(base_dtype="bfloat16"), BaseModel("checkpoints/pretrain/1"))]
)
def test_a_record_is_read_as_it_was_written(tmp_path, adapter):
    (tmp_path / RECORD).write_bytes(adapter.to_json())
    assert read_record(tmp_path) == adapter


def test_a_folder_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path) is None


def test_only_the_recorded_base_is_accepted():
    require_base(ADAPTER.base, "a" * 64, "here")
    require_base(BaseModel("user/model"), "c" * 64, "here")  # peft records no hash
