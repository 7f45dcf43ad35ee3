"""Data sets that jobs of ours read on the Hub: the layout of the published ones, invented rows."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.hub_server import HubServer

Rows = list[dict[str, Any]]

TULU = "allenai/tulu-3-sft-personas-instruction-following"
SMOLTALK = "HuggingFaceTB/smoltalk"
STORIES = "roneneldan/TinyStories"


def publish_data(hub: HubServer, conversations: int = 200, stories: int = 400) -> None:
    """Put the three data sets on the Hub."""
    talks = [conversation(number) for number in range(conversations)]
    constrained = [
        {"id": str(n), "prompt": talk[0]["content"], "messages": talk, "constraints": ["short"]}
        for n, talk in enumerate(talks)
    ]
    add_table(hub, TULU, "default", "data/train-00000-of-00001.parquet", constrained)
    everyday = [{"full_topic": "Cooking/Eggs", "messages": talk} for talk in talks]
    name = "everyday-conversations"
    add_table(hub, SMOLTALK, name, f"data/{name}/train-00000-of-00001.parquet", everyday)
    told = [{"text": f"Once upon a time, robot {n} sat on a hill. " * 40} for n in range(stories)]
    add_table(hub, STORIES, "default", "data/train-00000-of-00001.parquet", told)


def conversation(number: int) -> list[dict[str, str]]:
    """Return the messages of one conversation."""
    question = f"How long do I boil {number} eggs?"
    answer = f"Boil {number} eggs for {number % 9 + 1} minutes. " + 9 * "Put them into cold water. "
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def add_table(hub: HubServer, repo: str, config: str, path: str, rows: Rows) -> None:
    """Add a data set of one parquet file, with a card that names its configuration."""
    files = f"  - split: train\n    path: {path.replace('00000-of-00001', '*')}\n"
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    hub.add_repo(repo, "dataset", {"README.md": card.encode(), path: table.getvalue()})
