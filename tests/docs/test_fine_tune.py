"""What the pages about fine-tuning show is read as it stands there."""

import json
import re

import yaml

from pion.data.preference.layouts import Pair, parse_preference
from pion.data.records.layouts import read_conversation
from pion.train.preference_losses import METRICS
from pipeline.job.prefer_section import Prefer
from tests.paths import REPOSITORY
from tests.support.published_models import load_shipped

PAGES = {
    name: (REPOSITORY / "docs" / f"{name}.md").read_text()
    for name in ("fine-tune", "conversations", "overfitting", "preferences")
}


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGES[page], re.S)


def test_its_job_is_valid_and_may_have_each_of_its_sources(tmp_path):
    (job,), (sources,) = blocks("fine-tune", "yaml"), blocks("conversations", "yaml")
    (measured,) = blocks("overfitting", "yaml")
    path = tmp_path / "job.yaml"
    for source in yaml.safe_load(sources)["sources"]:
        content = yaml.safe_load(job)
        content["sft"]["sources"] = [source]
        path.write_text(yaml.safe_dump(content))
        assert load_shipped(path).stages == ["prepare", "sft", "evaluate", "publish"]
    # Its folder is not here; a model of the same settings stands for it.
    path.write_text(yaml.safe_dump(yaml.safe_load(measured) | {"model": content["model"]}))
    assert load_shipped(path).stages == ["prepare", "sft", "evaluate", "publish"]


def test_its_conversations_have_the_layouts_that_are_read():
    plain, with_tools, openhermes = map(json.loads, blocks("conversations", "json"))
    records = [read_conversation(record, "here") for record in (plain, openhermes, with_tools)]
    roles = [" ".join(message["role"] for message in record.messages) for record in records]
    assert roles == ["system user assistant", "user assistant", "user assistant tool assistant"]
    for record in (plain, openhermes):
        assert read_conversation(record, "here", own=True).messages[-1]["role"] == "assistant"
    assert records[-1].tools is not None
    assert records[-1].messages[1]["tool_calls"]


def test_its_pair_is_read_and_its_losses_and_numbers_are_pions():
    (pair,) = map(json.loads, blocks("preferences", "json"))
    assert isinstance(parse_preference(pair, "here"), Pair)
    chapter = re.sub(r"\s+", " ", PAGES["preferences"])
    defaults = re.search(r"`(\S+)`, β (\d+), `lr: (\S+)` \((\S+) with LoRA\)", chapter)
    loss, beta, lr, lr_of_lora = defaults.groups()
    usual, adapted = (
        Prefer.model_validate({"sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], **more})
        for more in ({}, {"lora": {}})
    )
    assert (usual.loss, usual.beta, usual.lr) == (loss, float(beta), float(lr))
    assert adapted.lr == float(lr_of_lora)
    assert set(re.findall(r"^\| `(\w+)`", PAGES["preferences"], re.M)) <= METRICS.keys()
    assert set(re.findall(r"`(\w+): [\w.-]+`", chapter)) <= {*Prefer.model_fields, "checkpoint"}
