"""Outages, limits, answers that are not from the Hub, and the probe that finds them first."""

import time as real_time

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from pion.errors import BadInput
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import Entry, StoreError
from pipeline.state.stores.hub import errors
from pipeline.state.stores.hub.store import HubStore
from tests.pipeline.state.stores.hub.conftest import HOUR, MIB, REPO, commits, large
from tests.support.hub_server import FINE_GRAINED_TOKEN, READ_TOKEN, WRITE_TOKEN

# ---------------------------------------------------------------- outages and limits


@pytest.mark.parametrize("status", [429, 503])
def test_the_store_waits_as_long_as_the_hub_asks(hub, store, time, status):
    before = time.time
    hub.fail("POST .*/commit/", status=status, retry_after="70")
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert time.time - before >= 70


@pytest.mark.parametrize("call", ["refs", "paths-info", "commit", "resolve"])
def test_a_transient_failure_of_any_call_is_retried(hub, store, call):
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    hub.fail(f"/{call}", status=502)
    hub.drop(f"/{call}")
    assert store.read_versioned("demo/HEAD.json") == (b"1", version)
    store.compare_and_swap("demo/HEAD.json", b"2", version)
    assert hub.files(REPO)["demo/HEAD.json"] == b"2"


def test_a_hub_that_stays_down_is_an_outage_and_staged_changes_are_kept(hub, store):
    store.write("demo/a", b"x")
    hub.fail("POST .*/commit/", status=503, times=100)
    with pytest.raises(
        StoreError, match=r"Cannot write hf://user/runs/?: the Hub answered 503"
    ) as e:
        store.flush()
    assert e.value.outage
    hub.faults.clear()
    store.flush()
    assert hub.files(REPO)["demo/a"] == b"x"


def test_a_stalled_request_times_out_and_is_retried(hub, store, monkeypatch):
    store.write("demo/a", b"x")
    store.flush()
    monkeypatch.setattr("pipeline.state.stores.hub.repo.TIMEOUT", httpx.Timeout(0.3))
    hub.before("GET .*/tree/", lambda: real_time.sleep(1.0))
    assert store.list("demo/") == [Entry("demo/a", 1)]
    assert hub.count("GET .*/tree/") == 2


def test_an_offline_client_is_no_outage(hub, store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE") as raised:
        store.read("demo/HEAD.json")
    assert not raised.value.outage


def test_a_gated_repository_says_that_access_has_to_be_granted(hub):
    hub.add_repo("user/gated", files={"demo/HEAD.json": b"{}"}, gated=True)
    with pytest.raises(StoreError, match="access to hf://user/gated has to be granted") as raised:
        HubStore("user/gated").read("demo/HEAD.json")
    assert not raised.value.outage


def test_a_broken_upload_is_sent_again(hub, store):
    hub.drop("PUT /lfs/")
    store.write("demo/model", large("model"))
    store.flush()
    assert hub.files(REPO)["demo/model"] == large("model")


def test_an_hour_of_saves_stays_within_the_hubs_budget(hub, another, time):
    hub.commit_limit = 128
    begun = commits(hub)
    state = RunState(another(), "demo", time.clock())
    claim = claim_run(state, Owner.me())
    saves = 0
    until = time.time + HOUR
    while time.time < until:
        claim.store.write(f"demo/checkpoints/{saves}/model.safetensors", b"x" * saves)
        claim.store.write(f"demo/metrics/{saves}.jsonl", b"{}")
        claim.commit(lambda head: head)
        saves += 1
        time.sleep(claim.store.save_seconds)
    claim.release()
    assert saves == 30
    assert commits(hub) - begun == saves + 2 <= 64  # two runs fit, with room to start again
    assert hub.count("POST .*/commit/") == saves + 2  # not one was refused


def test_a_spent_budget_is_an_outage_that_says_so(hub, store):
    hub.commit_limit = 1
    with pytest.raises(StoreError, match="hourly quotas for action: commit") as raised:
        store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert raised.value.outage


# ---------------------------------------------------------------- the probe


def test_a_good_store_is_probed_without_a_commit(hub, store):
    before = hub.commits(REPO), hub.files(REPO)
    store.probe("demo/")
    assert (hub.commits(REPO), hub.files(REPO)) == before


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "there is no Hub token"),
        (READ_TOKEN, "the token of tester is read-only"),
        (FINE_GRAINED_TOKEN, "the Hub denied access"),
    ],
)
def test_a_token_that_may_not_write_is_refused(hub, monkeypatch, tmp_path, token, message):
    hub.use(monkeypatch, tmp_path / "hf", token)
    with pytest.raises(BadInput, match=message) as raised:
        HubStore(REPO).probe("demo/")
    assert "https://huggingface.co/settings/tokens" in str(raised.value)
    assert "Nothing was started." in str(raised.value)
    assert "hf_test" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("user/nothing", "`hf repos create user/nothing --private`"),
        ("datasets/user/d", "`hf repos create user/d --private --repo-type dataset`"),
    ],
)
def test_a_missing_repository_is_refused_with_the_command_that_makes_it(hub, name, command):
    with pytest.raises(BadInput, match="there is no such repository") as raised:
        HubStore.open(name).probe("demo/")
    assert command in str(raised.value)


def test_a_hub_that_commits_on_any_parent_is_refused_and_left_clean(hub, store):
    hub.ignores_parents = True
    before = hub.files(REPO)
    with pytest.raises(BadInput, match="ignores a commit's parent"):
        store.probe("demo/")
    assert hub.files(REPO) == before


def test_a_hub_that_is_down_is_no_bad_input(hub, store):
    hub.drop("/refs", times=100)
    with pytest.raises(StoreError, match="the Hub sent no complete response") as raised:
        store.probe("demo/")
    assert raised.value.outage


def test_an_expired_token_is_an_outage_that_names_the_fix_and_not_the_token(
    hub, store, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(StoreError, match="does not accept the token in HF_TOKEN") as raised:
        store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert raised.value.outage
    assert "hf auth login" in str(raised.value)
    assert "hf_expired" not in str(raised.value)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    store.compare_and_swap("demo/HEAD.json", b"1", None)


def test_a_data_set_repository_holds_runs_too(hub, time):
    hub.add_repo("user/d", "dataset")
    store = HubStore("user/d", "dataset", sleep=time.sleep)
    store.probe("demo/")
    store.write("demo/model", large("model"))
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert store.list() == [Entry("demo/HEAD.json", 1), Entry("demo/model", MIB)]
    assert store.sweep_unfinished("demo/", time.time + HOUR) == 0


# ---------------------------------------------------------------- answers of others


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"", b"null", b'[{"type": "fi'])
def test_what_is_not_an_answer_of_the_hub_is_asked_again_and_then_an_outage(
    hub, store, another, tmp_path, page
):
    store.write("demo/large", large("a"))
    version = store.compare_and_swap("demo/HEAD.json", b"0", None)

    def swap():
        nonlocal version
        version = store.compare_and_swap("demo/HEAD.json", b"1" + version.encode(), version)

    calls = [
        ("GET .*/refs", swap),
        ("POST .*/commit/", swap),
        ("GET .*/resolve/", lambda: store.read("demo/HEAD.json")),
        ("HEAD .*/resolve/", lambda: store.download("demo/large", tmp_path / "large")),
        ("GET .*/tree/", lambda: another().list("demo/")),
    ]
    for match, call in calls:
        hub.answer_page(match, page)
        call()
        assert hub.faults[-1].times == 0, match
        hub.answer_page(match, page, times=100)
        with pytest.raises(StoreError, match=r"check HF_ENDPOINT, and any proxy") as caught:
            call()
        assert caught.value.outage
        hub.faults.clear()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Private repository storage limit reached, please upgrade", "there is no room left"),
        ("Your account has been suspended", "has suspended this account"),
        ("", "denied access; set HF_TOKEN"),
    ],
)
def test_not_every_refusal_is_a_missing_permission(message, says):
    request = httpx.Request("POST", "https://huggingface.co/api")
    response = httpx.Response(403, request=request)
    refused = HfHubHTTPError(message, response=response, server_message=message)
    assert says in errors.explain(refused, "hf://user/repo", "")


def test_a_certificate_that_is_not_trusted_does_not_pass_by_itself():
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert not errors.is_transient(error)
    assert not errors.is_outage(error)
    assert "SSL_CERT_FILE" in errors.explain(error, "hf://user/repo", "")
