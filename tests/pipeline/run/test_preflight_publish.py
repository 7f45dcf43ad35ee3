"""What can't be published to the Hub is refused before anything is started."""

import pytest

from pion.errors import BadInput
from pipeline.run.preflight_publish import check_target
from tests.support.hub_server import FINE_GRAINED_TOKEN, READ_TOKEN
from tests.support.trained_model import Trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


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
