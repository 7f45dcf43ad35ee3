"""Data on the Hub: the real clients against our own Hub on loopback."""

import io
from dataclasses import replace

import numpy as np
import pytest

from pion.data.records.fields import NOT_READ
from pion.errors import BadInput, PionError
from pipeline.data.hub import (
    OnHub,
    explained,
    hub_records,
    hub_shards,
    pin,
    read_hub_rows,
)
from pipeline.job import HubDataset, HubNpyShards
from tests.support.hub_server import READ_TOKEN

SEQ_LEN = 32


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def shard(rows, row_ids=SEQ_LEN, dtype=np.int32):
    return npy(np.arange(rows * row_ids, dtype=dtype).reshape(rows, row_ids))


def npy_source(repo="user/shards", **fields):
    return HubNpyShards.model_validate({"kind": "hub-npy", "repo": repo, **fields})


def described(source, seq_len=SEQ_LEN):
    return hub_shards(source, pin(source.repo, source.revision), seq_len)


def test_shards_are_described_without_downloading_them(hub):
    files = {f"shard_{i}.npy": shard(1000 * (i + 1)) for i in range(3)} | {"README.md": b"#"}
    commit = hub.add_repo("user/shards", "dataset", files)
    shards = described(npy_source())
    assert [(s.name, s.rows, s.dtype) for s in shards] == [
        ("shard_0.npy", 1000, "int32"),
        ("shard_1.npy", 2000, "int32"),
        ("shard_2.npy", 3000, "int32"),
    ]
    assert shards[2].bytes == len(files["shard_2.npy"])
    assert shards[2].remote == {"repo": "user/shards", "revision": commit, "path": "shard_2.npy"}
    assert hub.count("GET /datasets/.*/resolve/") == 1  # the header of the first shard


def test_rows_longer_than_seq_len_are_counted_as_several(hub):
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(5, row_ids=4 * SEQ_LEN)})
    assert described(npy_source())[0].rows == 20


def test_a_repository_that_changes_later_is_still_read_at_the_pinned_commit(hub):
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(4)})
    commit = pin("user/shards", None)
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(9), "shard_1.npy": shard(9)})
    assert [s.rows for s in hub_shards(npy_source(), commit, SEQ_LEN)] == [4]


def test_the_first_rows_of_a_range_are_read_without_the_rest(hub):
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(1000)})
    whole = described(npy_source())[0]
    rows = read_hub_rows(replace(whole, start=900, rows=100), 3, SEQ_LEN)
    assert rows.tolist() == np.arange(900 * 32, 903 * 32).reshape(3, 32).tolist()


def test_a_data_set_is_streamed_up_to_max_documents(hub):
    lines = b"".join(b'{"text": "document %d"}\n' % i for i in range(10))
    commit = hub.add_repo("user/text", "dataset", {"train.jsonl": lines})
    source = HubDataset(kind="hub", repo="user/text", max_documents=3)
    records = list(hub_records(source, commit, ("text",)))
    assert [r.value["text"] for r in records] == ["document 0", "document 1", "document 2"]
    assert records[2].origin == "user/text row 3"


# ---------------------------------------------------------------- what can be wrong


PAGE = "https://huggingface.co/datasets/user/shards"


@pytest.mark.parametrize(
    ("options", "token", "revision", "why"),
    [
        (None, "usual", None, "user/shards: there is no such repository"),
        ({"private": True}, None, None, r"No Hub token was found. .*export HF_TOKEN="),
        ({"gated": True}, "usual", None, f"gated.*HF_TOKEN.*Accept the terms on {PAGE} with"),
        ({}, "hf_expired", None, "denied access.*HF_TOKEN"),
        ({}, "usual", "v7", "at v7: there is no such revision"),
    ],
    ids=["absent", "private", "gated", "a wrong token", "no such revision"],
)
def test_a_repository_that_can_not_be_read_is_refused_with_what_to_do(
    hub, monkeypatch, options, token, revision, why
):
    if options is not None:
        hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(4)}, **options)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    elif token != "usual":
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match=why):
        described(npy_source(revision=revision))


def test_a_read_token_is_enough_to_read(hub, monkeypatch):
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": shard(4)}, private=True)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert described(npy_source())[0].rows == 4


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([b"PK\x03\x04 not numpy at all" * 10], "shard_0.npy: .*can't read this .npy shard"),
        ([npy(np.zeros((4, SEQ_LEN), np.float32))], "shard_0.npy: .*token ids must be integers"),
        ([npy(np.zeros(SEQ_LEN, np.int32))], "shard_0.npy: .*C-ordered .rows, seq_len. array"),
        ([shard(4, row_ids=SEQ_LEN + 1)], "shard_0.npy: .*can't be read as rows of seq_len 32"),
        ([shard(4), shard(4)[:-4]], "shard_1.npy: .* not a whole number of rows"),
        ([], r"no file matches pattern 'shard_\*\.npy'"),
    ],
)
def test_a_file_that_is_no_shard_is_named(hub, files, problem):
    named = {f"shard_{number}.npy": content for number, content in enumerate(files)}
    hub.add_repo("user/shards", "dataset", named | {"data.npy": shard(4)})
    with pytest.raises(BadInput, match=f"user/shards.*{problem}"):
        described(npy_source())


def test_a_split_that_is_not_there_names_those_that_are(hub):
    commit = hub.add_repo("user/text", "dataset", {"train.jsonl": b'{"text": "x"}\n'})
    source = HubDataset(kind="hub", repo="user/text", split="test")
    with pytest.raises(BadInput, match=r"test.*\['train'\]"):
        list(hub_records(source, commit, ("text",)))


def test_a_hub_out_of_reach_is_said_so_and_is_not_the_users_fault(hub, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PionError, match=r"can't be reached.*Run the same command again") as raised:
        pin("user/shards", None)
    assert raised.value.exit_code == 1


# ---------------------------------------------------------------- hostile data sets


def streamed(hub, files, *columns):
    """Return the rows of a data set with these files, with only these columns."""
    commit = hub.add_repo("user/rows", "dataset", files)
    source = HubDataset(kind="hub", repo="user/rows")
    return [record.value for record in hub_records(source, commit, columns)]


def pictures(address):
    """Return a parquet file with a picture that lies at `address`, as `datasets` writes it."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"text": "a", "image": {"bytes": None, "path": address}}]
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (("text",), [{"image": NOT_READ, "text": "a"}]),
        (("image",), [{"text": NOT_READ, "image": {"bytes": None, "path": "URL"}}]),
        (("other",), [{"text": NOT_READ, "image": NOT_READ}]),
    ],
)
def test_the_address_of_a_picture_is_never_opened(hub, columns, rows):
    address = f"{hub.url}/picture.png"
    found = streamed(hub, {"train.parquet": pictures(address)}, *columns)
    assert str(found) == str(rows).replace("URL", address)
    assert hub.count("GET .*/picture.png") == hub.count("HEAD .*/picture.png") == 0


def test_of_a_row_only_the_columns_asked_for_are_read_and_the_others_are_named(hub):
    lines = b'{"text": "a", "other": 1}\n{"text": "b", "other": 2}\n'
    expected = [{"text": text, "other": NOT_READ} for text in "ab"]
    assert streamed(hub, {"train.jsonl": lines}, "text") == expected


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"rows.py": b"import datasets"}, "it is a program that writes data"),
        ({"train.xml": b"<a>b</a>"}, "of the kind 'xml', which Pion does not read"),
        ({"train.tar": b"\0" * 10240}, "of the kind 'webdataset', which Pion does not read"),
        ({"train.parquet": b"PAR1 no parquet"}, "Hub data set user/rows"),
        ({"train.jsonl": b"[" * 100_000}, "Hub data set user/rows"),
        ({"train.jsonl": b'{"text": 1}\n{"te'}, "Hub data set user/rows"),
        ({"train.csv": b'"\0'}, "Hub data set user/rows|row 1"),
        ({"README.md": b"---\nconfigs: 5\n---\n", "a.jsonl": b"{}"}, "Hub data set user/rows"),
        ({"README.md": b"---\na: [\n---\n", "a.jsonl": b"{}"}, "Hub data set user/rows"),
    ],
)
def test_a_hostile_data_set_is_bad_input(hub, files, reason):
    with pytest.raises(BadInput, match=reason):
        streamed(hub, files, "text")


@pytest.mark.parametrize(
    ("place", "reason"),
    [("secret.txt", "don't belong to user/rows"), ("URL/secret.txt", "there is no such file")],
)
def test_a_data_set_that_names_files_elsewhere_is_refused(hub, tmp_path, place, reason):
    (tmp_path / "secret.txt").write_text("my secret")
    path = place.replace("URL", hub.url) if "URL" in place else tmp_path / place
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n"
    with pytest.raises(BadInput, match=reason):
        streamed(hub, {"README.md": card.encode(), "train.jsonl": b"{}"}, "text")


def test_an_error_that_is_not_about_the_hub_keeps_its_cause():
    def fail():
        with explained(OnHub("user/data")):
            raise ZeroDivisionError from KeyError("x")

    with pytest.raises(ZeroDivisionError) as failed:
        fail()
    assert isinstance(failed.value.__cause__, KeyError)
