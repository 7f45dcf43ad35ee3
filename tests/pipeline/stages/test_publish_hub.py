"""Publishing to the Hub: one private commit, refusals before it, and outages in between."""

import pytest

from pion.errors import BadInput, Interrupted
from pipeline.stages.publish import check_target
from tests.support.hub_server import FINE_GRAINED_TOKEN, READ_TOKEN
from tests.support.trained_model import Trained, contents


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


def test_a_hub_repository_gets_everything_in_one_private_commit_and_belongs_to_its_run(
    hub, trained, tmp_path
):
    assert check_target(trained.job("hf://tester/demo")) == []
    published = trained.publish("hf://tester/demo")
    repo = hub.repos["model", "tester/demo"]
    assert repo.private
    assert hub.commits("tester/demo")[1:] == ["Publish demo"]
    assert published["commit"] == repo.commits[-1].oid
    assert published["url"].endswith("/tester/demo")
    trained.publish(tmp_path / "demo")
    local, remote = contents(tmp_path / "demo"), hub.files("tester/demo")
    assert remote["model.safetensors"] == local["model.safetensors"]
    assert set(remote) == {*local, ".gitattributes"}
    # The same model again makes no commit, and another run is refused.
    assert check_target(trained.job("hf://tester/demo")) == []
    assert trained.publish("hf://tester/demo")["commit"] == published["commit"]
    assert len(hub.commits("tester/demo")) == 2
    job = trained.job("hf://tester/demo").model_copy(update={"name": "other"})
    with pytest.raises(BadInput, match=r"another run.*publish.to=hf://tester/demo-2"):
        check_target(job)


def test_a_public_repository_is_made_only_when_asked_for(hub, trained):
    trained.publish("hf://tester/demo", private=False)
    assert not hub.repos["model", "tester/demo"].private


def test_a_private_model_never_lands_in_a_repository_that_is_public(hub, trained):
    hub.add_repo("tester/demo", files={"README.md": b"mine"})
    with pytest.raises(BadInput, match="is public"):
        check_target(trained.job("hf://tester/demo"))
    with pytest.raises(BadInput, match="is public"):
        trained.publish("hf://tester/demo")
    assert hub.files("tester/demo") == {"README.md": b"mine"}


def test_without_a_token_nothing_is_started(hub, trained, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BadInput, match=r"HF_TOKEN or run `hf auth login`") as caught:
        check_target(trained.job("hf://tester/demo"))
    assert caught.value.exit_code == 2
    with pytest.raises(BadInput, match="HF_TOKEN"):
        trained.publish("hf://tester/demo")


@pytest.mark.parametrize(
    ("token", "says"), [(READ_TOKEN, "is read-only"), ("hf_expired_secret", "does not accept")]
)
def test_a_token_that_may_not_write_is_found_before_training_and_never_shown(
    token, says, hub, trained, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match=says) as caught:
        check_target(trained.job("hf://tester/demo"))
    assert token not in str(caught.value)
    with pytest.raises(BadInput) as caught:
        trained.publish("hf://tester/demo")
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "permissions", "may"),
    [
        ("user", "tester", ["repo.content.read", "repo.write"], True),
        ("model", "tester/demo", ["repo.write"], True),
        ("user", "tester", ["repo.content.read"], False),
        ("model", "tester/another", ["repo.write"], False),
        ("dataset", "tester/demo", ["repo.write"], False),
    ],
)
def test_a_fine_grained_token_needs_the_right_to_write_there(
    kind, name, permissions, may, hub, trained, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", FINE_GRAINED_TOKEN)
    hub.scoped = [(kind, name, permissions)]
    if may:
        assert check_target(trained.job("hf://tester/demo")) == []
        return
    with pytest.raises(BadInput, match=r"fine-grained Hub token of tester can't write.*tokens"):
        check_target(trained.job("hf://tester/demo"))


def test_metadata_the_hub_refuses_and_anothers_namespace_are_found_before_training(hub, trained):
    with pytest.raises(BadInput, match="can't publish as google"):
        check_target(trained.job("hf://google/demo"))
    hub.fail("validate-yaml", status=400)
    with pytest.raises(BadInput, match=r"the license in publish\.license"):
        check_target(trained.job("hf://tester/demo", license="do-what-you-like"))


@pytest.mark.parametrize("to", ["hf://demo", "hf://a/b/c", "hf://tester/de mo", "s3://bucket/demo"])
def test_a_target_that_is_neither_a_folder_nor_a_repository_is_bad_input(to, trained):
    with pytest.raises(BadInput, match="neither a folder nor hf://user/name"):
        check_target(trained.job(to))


def test_a_hub_that_is_down_before_training_is_a_note_not_an_error(hub, trained):
    hub.fail("whoami", status=503)
    (note,) = check_target(trained.job("hf://tester/demo"))
    assert "could not be checked" in note


def test_an_outage_while_publishing_is_waited_out(hub, trained, monkeypatch):
    waited = []
    monkeypatch.setattr("pipeline.stages.publish_hub.time.sleep", waited.append)
    hub.fail("/commit/", status=503, times=1)
    hub.fail("/commit/", status=429, times=1)
    trained.publish("hf://tester/demo")
    assert hub.commits("tester/demo")[1:] == ["Publish demo"]
    assert len(waited) == 2


def test_an_outage_that_does_not_end_keeps_the_model_and_asks_to_run_again(
    hub, trained, monkeypatch
):
    monkeypatch.setattr("pipeline.stages.publish_hub.time.sleep", lambda seconds: None)
    hub.fail("/commit/", status=502, times=99)
    with pytest.raises(Interrupted, match="Run the same command again") as caught:
        trained.publish("hf://tester/demo")
    assert str(trained.model) in str(caught.value)
    assert len(hub.commits("tester/demo")) == 1


def test_a_forbidden_commit_names_the_cause(hub, trained):
    hub.fail("/commit/", status=403)
    with pytest.raises(BadInput, match=r"denied access \(403\)"):
        trained.publish("hf://tester/demo")
