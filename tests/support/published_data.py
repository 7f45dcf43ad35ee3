"""Data sets that jobs of ours read on the Hub: the layout of the published ones, invented rows."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.hub_server import HubServer

Rows = list[dict[str, Any]]

TULU = "allenai/tulu-3-sft-personas-instruction-following"
SMOLTALK = "HuggingFaceTB/smoltalk"
SMOL_SMOLTALK = "HuggingFaceTB/smol-smoltalk"
STORIES = "roneneldan/TinyStories"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"


def publish_data(hub: HubServer, conversations: int = 200, stories: int = 400) -> None:
    """Put the five data sets on the Hub."""
    talks = [conversation(number) for number in range(conversations)]
    constrained = [
        {"id": str(n), "prompt": talk[0]["content"], "messages": talk, "constraints": ["short"]}
        for n, talk in enumerate(talks)
    ]
    add_table(hub, TULU, "default", "data/train-00000-of-00001.parquet", constrained)
    everyday = [{"full_topic": "Cooking/Eggs", "messages": talk} for talk in talks]
    name = "everyday-conversations"
    add_table(hub, SMOLTALK, name, f"data/{name}/train-00000-of-00001.parquet", everyday)
    mixed = [{"messages": talk, "source": "smol-magpie-ultra"} for talk in talks]
    add_table(hub, SMOL_SMOLTALK, "default", "data/train-00000-of-00001.parquet", mixed)
    rated = [rated_pair(number) for number in range(conversations)]
    add_table(hub, ULTRAFEEDBACK, "default", "data/train_prefs-00000-of-00001.parquet", rated)
    told = [{"text": f"Once upon a time, robot {n} sat on a hill. " * 40} for n in range(stories)]
    add_table(hub, STORIES, "default", "data/train-00000-of-00001.parquet", told)


def conversation(number: int) -> list[dict[str, str]]:
    """Return the messages of one conversation."""
    question = f"How long do I boil {number} eggs?"
    answer = f"Boil {number} eggs for {number % 9 + 1} minutes. " + 9 * "Put them into cold water. "
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rated_pair(number: int) -> dict[str, Any]:
    """Return a pair with the columns of UltraFeedback. Every second time, the chosen is longer."""
    question, answer = conversation(number)
    rambling = "Well, that depends. " * (20 if number % 2 else 2)
    worse = {"role": "assistant", "content": f"{number} eggs? {rambling}"}
    return {
        "prompt": question["content"],
        "prompt_id": f"{number:064x}",
        "chosen": [question, answer],
        "rejected": [question, worse],
        "messages": [question, answer],
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    }


def add_table(hub: HubServer, repo: str, config: str, path: str, rows: Rows) -> None:
    """Add a data set of one parquet file, with a card that names its configuration and split."""
    split = path.rpartition("/")[2].partition("-")[0]
    files = f"  - split: {split}\n    path: {path.replace('00000-of-00001', '*')}\n"
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    hub.add_repo(repo, "dataset", {"README.md": card.encode(), path: table.getvalue()})
