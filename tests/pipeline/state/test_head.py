"""HEAD: its changes, its JSON, and the content that is refused."""

import dataclasses
import json
import tracemalloc

import pytest

from pion.errors import BadInput
from pipeline.state.claim import claim_run
from pipeline.state.head import STAGE_FORMATS, CheckpointEntry, Head, SkippedRows, data_key
from pipeline.state.notes.rental_note import NOTE, RentalNote, write_rental_note
from pipeline.state.owner import Owner
from pipeline.state.record_json import BEFORE_0_1_0, MOST_VALUES, count_values
from pipeline.state.run_state import heartbeat_path
from tests.support.states import an_entry, list_checkpoint, read, someone

LATER = max(STAGE_FORMATS.values()) + 1


def test_redoing_a_stage_forgets_it_and_later_stages_but_not_earlier_ones(run):
    claim = claim_run(run, someone())
    for stage in ("pretrain", "sft"):
        list_checkpoint(claim, an_entry(10, stage=stage))
        claim.finish_stage(stage, "d", {"loss": 1.0}, f"checkpoints/{stage}/10-1")
    claim.finish_stage("evaluate", "d", {})
    head = claim.drop_stages(["sft", "evaluate"])
    assert list(head.stages) == ["pretrain"]
    assert [entry.stage for entry in head.checkpoints] == ["pretrain"]
    assert [item.key for item in head.trash] == ["checkpoints/sft/10-1"]


def test_going_back_to_an_earlier_step_unlists_the_later_checkpoints_of_that_stage(run):
    claim = claim_run(run, someone())
    list_checkpoint(claim, an_entry(50, stage="prior"))
    for step in (10, 20, 30):
        list_checkpoint(claim, an_entry(step))
    claim = claim_run(run, someone(), take_over=True)
    head = claim.set_restore("pretrain", 20)
    assert [(entry.stage, entry.step) for entry in head.checkpoints] == [
        ("pretrain", 20),
        ("pretrain", 10),
        ("prior", 50),
    ]
    assert head.restores == {2: {"pretrain": 20}}
    assert [item.key for item in head.trash] == ["checkpoints/pretrain/30-1"]


def test_a_head_of_a_newer_format_is_refused_with_its_version(run):
    claim_run(run, someone()).release()
    raw = json.loads(run.store.read("demo/HEAD.json"))
    run.store.write("demo/HEAD.json", json.dumps({**raw, "format": LATER}).encode())
    with pytest.raises(
        BadInput,
        match=r"HEAD.json has format version 8, but this pion reads version 4 and 5 and 6 and 7",
    ):
        claim_run(run, someone())


@pytest.mark.parametrize("number", [1, 2, 3])  # also one that was being removed
def test_a_head_of_before_0_1_0_is_refused_with_the_commit_that_continues_it(run, number):
    claim_run(run, someone())
    raw = json.loads(run.store.read("demo/HEAD.json"))
    old = json.dumps({**raw, "format": number}).encode()
    run.store.write("demo/HEAD.json", old)
    for reading in (run.read, lambda: claim_run(run, someone())):
        with pytest.raises(BadInput) as refused:
            reading()
        words = str(refused.value)
        assert "demo/HEAD.json was written by a commit before Pion 0.1.0" in words
        assert f"git checkout {BEFORE_0_1_0}" in words
        assert "use another store" in words
    assert run.store.read("demo/HEAD.json") == old


@pytest.mark.parametrize("where", ["head", "owner", "checkpoint", "claim"])
def test_an_unknown_field_is_refused_and_named(run, where):
    list_checkpoint(claim_run(run, someone()), an_entry(1))
    raw = json.loads(run.store.read("demo/HEAD.json"))
    places = {"head": raw, "owner": raw["owner"]}
    places |= {"checkpoint": raw["checkpoints"][0], "claim": raw["claims"][0]}
    places[where]["colour"] = "blue"
    run.store.write("demo/HEAD.json", json.dumps(raw).encode())
    with pytest.raises(BadInput, match=r"has colour in .*, which this pion can't read"):
        run.read()


@pytest.mark.parametrize(
    ("field", "item", "count", "words"),
    [
        ("write_ids", "0", 200_000, "has more than 50,000 values"),
        ("checkpoints", "{}", 20_000, "checkpoints.0.stage is missing"),
    ],
)
def test_a_head_full_of_mistakes_is_refused_with_the_first_in_little_memory(
    field, item, count, words
):
    data = f'{{"format": 4, "{field}": [{",".join([item] * count)}]}}'.encode()
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=words):
            Head.from_json(data, "HEAD.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6  # bytes: a message for each mistake takes 80 MB and more


def test_a_rented_machine_is_paid_for_from_its_start_and_once_for_all_its_processes():
    head = Head().claimed(someone(started_at=100.0), at=160.0, price=36.0)
    assert (head.spent.hours * 3600, head.spent.dollars) == pytest.approx((60.0, 0.6))
    head = head.claimed(someone(started_at=100.0), at=200.0, price=36.0)  # the same machine's next
    assert (head.spent.hours * 3600, head.spent.dollars) == pytest.approx((100.0, 1.0))
    head = head.claimed(someone(started_at=150.0, boot_id="third"), at=210.0, price=72.0)
    assert (head.spent.hours * 3600, head.spent.dollars) == pytest.approx((160.0, 2.2))


def test_a_clock_that_jumps_between_two_claims_of_a_session_costs_nothing():
    me = someone(started_at=100.0)
    head = Head().claimed(me, at=110.0, price=36.0).claimed(me, at=110.0 + 3 * 3600, price=36.0)
    assert (head.spent.hours * 3600, head.spent.dollars) == pytest.approx((10.0, 0.1))


@pytest.mark.slow
def test_a_head_that_nobody_could_read_is_not_written_and_fewer_checkpoints_are(run):
    claim = claim_run(run, someone())

    def with_checkpoints(count):
        entries = tuple(an_entry(step) for step in range(count, 0, -1))
        claim.commit(lambda head: dataclasses.replace(head, checkpoints=entries))

    per_entry = count_values(Head(checkpoints=(an_entry(2), an_entry(1))).to_json())
    per_entry -= count_values(Head(checkpoints=(an_entry(1),)).to_json())
    most = MOST_VALUES // per_entry
    with pytest.raises(BadInput, match=r"no pion could read it.*keep\.last"):
        with_checkpoints(most)
    assert not read(run).checkpoints
    with_checkpoints(int(0.89 * most))
    with pytest.raises(BadInput, match="everything committed before is safe"):
        with_checkpoints(int(0.92 * most))
    claim = claim_run(run, someone(), take_over=True)  # there is room for claims
    with_checkpoints(2)
    assert len(read(run).checkpoints) == 2


def test_a_head_of_a_run_with_preferences_is_refused_by_versions_that_do_not_know_them():
    """They would take the fine-tuned model for the last one."""
    key = data_key("a" * 64, "b" * 32)
    plain = dataclasses.replace(Head(), data={"sft": key})
    prefers = dataclasses.replace(Head(), data={"sft": key, "prefer": key})
    assert [json.loads(head.to_json())["format"] for head in (plain, prefers)] == [4, 6]
    for head in (plain, prefers):
        assert Head.from_json(head.to_json(), "HEAD.json") == head


# ---------------------------------------------------------------- keys that other versions read


HEAD = {
    "owner": "session pid pid_start pid_namespace boot_id host launch_id commit dirty versions "
    "started_at",
    "": "epoch owner job stages checkpoints restores claims committed_epoch spent forked skipped "
    "trash data write_ids format",
    "stages.*": "digest at checkpoint result",
    "checkpoints": "stage step epoch digest key at bytes model_sha256 ancestor metrics",
    "claims": "epoch at owner",
    "spent": "hours dollars until",
    "skipped.*": "first stop step epoch digest why at",
    "trash": "key not_before",
}
KEYS = {path: set(names.split()) for path, names in HEAD.items()}
KEYS["claims.owner"] = OWNER = KEYS["owner"]
OWNER_FILE = {"epoch", "owner", "at", "beat", "status"}
RENTAL = {"at", "host", "rented_from", "launch_id", "epoch", "over", "format"}


RULE = (
    "A machine keeps the pion that it was launched with, and that pion refuses a key it does not "
    "know: it would stop training. Put a new fact into its own object in the store. If it "
    "must be here, write it under a new `format` number, and only in runs that need it."
)


@pytest.fixture
def written(run):
    """Return a run whose HEAD has one of everything, with a heartbeat and a rental's note."""
    write_rental_note(run, RentalNote(0.0, "host", "here", "launch", 1), None)
    claim = claim_run(run, Owner.me(), price=0.5)
    claim.set_job("0123")
    claim.finish_stage("prepare", "digest", {"rows": 3})
    for step in (1, 2):
        key = f"checkpoints/pretrain/{step}-1"
        entry = CheckpointEntry("pretrain", step, 1, "digest", key, 0.0, 9, "sha")
        claim.commit(lambda head, entry=entry: head.with_checkpoint(entry))
    claim.commit(
        lambda head: head.with_skipped(
            "pretrain", SkippedRows(0, 4, 2, 1, "digest", "a loss of nan", 0.0)
        )
    )
    claim.set_restore("pretrain", 1)  # the later checkpoint becomes trash
    claim.heartbeat.beat()
    return run


def record_at(run, path):
    return json.loads(run.store.read(run.key(path)))


def test_no_key_is_added_to_a_record_that_other_versions_read_or_taken_from_it(written):
    head = record_at(written, "HEAD.json")
    assert {path: set(at(head, path)) for path in KEYS} == KEYS, RULE
    beat = record_at(written, heartbeat_path(1))
    assert (set(beat), set(beat["owner"])) == (OWNER_FILE, OWNER), RULE
    assert set(record_at(written, NOTE)) == RENTAL, RULE


@pytest.mark.parametrize("change", [{"format": LATER}, {"colour": "red"}])
def test_an_owner_commits_nothing_on_a_head_from_a_newer_version(run, change):
    claim = claim_run(run, Owner.me())
    newer = json.dumps(record_at(run, "HEAD.json") | change).encode()
    version = run.store.read_versioned(run.key("HEAD.json"))[1]
    run.store.compare_and_swap(run.key("HEAD.json"), newer, version)
    with pytest.raises(BadInput, match=r"HEAD\.json"):
        claim.commit(lambda head: dataclasses.replace(head, job="0123"))
    assert run.store.read(run.key("HEAD.json")) == newer


def at(record, path):
    """Return every key of the objects at a dotted path. Lists are entered, and `*` is any key."""
    if isinstance(record, list):
        for item in record:
            yield from at(item, path)
    elif not path:
        yield from record or ()
    elif record:
        key, _, rest = path.partition(".")
        for inner in record.values() if key == "*" else [record[key]]:
            yield from at(inner, rest)
