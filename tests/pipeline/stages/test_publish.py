"""Publishing delivers a complete, verified model, or changes nothing and says what to do."""

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import pion.formats.export
from pion.errors import BadInput, Fenced, Interrupted, PionError
from pion.files import sha256_file
from pion.formats.target_folder import EXPORT_FILES
from pipeline.console.messages import Note
from pipeline.cost.costs import Costs
from pipeline.report.history import RunHistory
from pipeline.report.published_by import is_still_there
from pipeline.run.preflight_publish import check_target
from pipeline.stages.publish import publish_run
from pipeline.state.head import Head
from tests.support.jobs import tiny_job
from tests.support.trained_model import METRICS, TEXTS, TRAINING, Trained, contents


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("trained"))


# ---------------------------------------------------------------- a folder


def test_embeddings_may_have_half_the_size_and_are_exact_on_reload(trained, tmp_path):
    out = tmp_path / "small"
    published = trained.publish(out, embeddings="bfloat16")
    assert published["max_logit_difference"] < 1e-4
    weights, whole = (load_file(f / "model.safetensors") for f in (out, trained.model))
    rows = weights.pop("model.embed_tokens.weight")
    assert torch.equal(rows, whole["embed.weight"][: len(rows)].bfloat16())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    again, _ = pion.load(out)
    assert torch.equal(again.embed.weight, rows.float())
    assert "rounded to bfloat16 after the results above" in (out / "README.md").read_text()


def run_code_of(card):
    """Run the code that a card shows."""
    code = card.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, card.name, "exec"), {})


def test_a_folder_gets_the_model_its_card_and_its_loss_plot_and_again_the_same_bytes(
    trained, tmp_path, capsys
):
    out = tmp_path / "new" / "demo"
    says = []
    published = trained.publish(out, says=says)
    assert set(contents(out)) == set(EXPORT_FILES) - {"chat_template.jinja"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert ModelCard.load(out / "README.md").data.license == "apache-2.0"
    weights = load_file(out / "model.safetensors")
    assert published == {
        "target": str(out),
        "path": str(out),
        "sha256": sha256_file(out / "model.safetensors"),
        "card": str(out / "README.md"),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "max_logit_difference": pytest.approx(0, abs=1e-4),
    }
    assert any("same model" in message.text for message in says)
    assert [path.name for path in out.parent.iterdir()] == ["demo"], "nothing is left next to it"
    run_code_of(out / "README.md")
    assert capsys.readouterr().out
    before = contents(out)
    trained.publish(out)
    assert contents(out) == before


@pytest.mark.slow
def test_a_model_that_no_stock_architecture_computes_is_published_with_its_code(tmp_path, capsys):
    trained = Trained(tmp_path, softcap=1.5)
    published = trained.publish(tmp_path / "demo")
    weights = load_file(tmp_path / "demo" / "model.safetensors")
    assert published["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert published["max_logit_difference"] <= 1e-5
    run_code_of(tmp_path / "demo" / "README.md")
    assert capsys.readouterr().out
    before = contents(tmp_path / "demo")
    trained.publish(tmp_path / "demo")
    assert contents(tmp_path / "demo") == before


def test_an_export_that_is_not_the_trained_model_is_refused_and_the_published_one_stays(
    trained, tmp_path, monkeypatch
):
    trained.publish(tmp_path / "demo")
    before = contents(tmp_path / "demo")
    export = pion.formats.export.export_model

    def disk_that_flips_a_bit(model, tokenizer, out, **options):
        export(model, tokenizer, out, **options)
        weights = load_file(out / "model.safetensors")
        weights["model.layers.0.mlp.down_proj.weight"][0, 0] *= -1e4
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(pion.formats.export, "export_model", disk_that_flips_a_bit)
    with pytest.raises(PionError, match=r"Nothing was published: .* different logits"):
        trained.publish(tmp_path / "demo")
    assert contents(tmp_path / "demo") == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == ["demo"]


def test_a_folder_with_something_else_in_it_is_refused(trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(BadInput, match=r"thesis\.txt"):
        check_target(trained.job(tmp_path))
    with pytest.raises(BadInput, match=r"thesis\.txt"):
        trained.publish(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"ten years of work"}


def test_a_folder_that_cannot_be_made_or_written_is_found_before_training(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file \(Not a directory\)"):
        check_target(trained.job(tmp_path / "file" / "deep" / "demo"))
    with pytest.raises(BadInput, match="nothing can be written"):
        check_target(trained.job("/proc/demo"))  # even root can't make a file there


# ---------------------------------------------------------------- publish.require


def test_conditions_that_are_met_let_the_model_pass(trained, tmp_path):
    met = ["bits_per_byte < 2.2", "ngram.bits_per_byte > 2.0", "continuations.accuracy >= .6"]
    trained.publish(tmp_path / "demo", require=met)
    assert (tmp_path / "demo" / "config.json").exists()


def test_a_condition_that_is_not_met_blocks_the_model_and_says_how_to_continue(trained, tmp_path):
    with pytest.raises(BadInput) as caught:
        trained.publish(tmp_path / "demo", require=["bits_per_byte < 2", "loss <= 3", "loss < 2.5"])
    message = str(caught.value)
    assert "bits_per_byte < 2 (measured: 2.08); loss < 2.5 (measured: 3)" in message
    assert str(trained.model) in message
    assert "change publish.require" in message
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_or_was_not_measured_never_passes(trained, tmp_path):
    broken = {"pretrain": {"loss": float("nan")}}
    for condition in ("loss < 5", "loss > 5", "loss >= 0"):
        with pytest.raises(BadInput, match="not met"):
            trained.publish(tmp_path / "demo", require=[condition], results=broken)
    with pytest.raises(BadInput, match=r"no result 'lm_eval\.arc\.acc'.* ngram\.loss"):
        trained.publish(tmp_path / "demo", require=["lm_eval.arc.acc > 0.3"])
    with pytest.raises(BadInput, match="not a number"):
        check_target(trained.job(tmp_path / "demo", require=["loss < 1e"]))


def test_a_folder_belongs_to_the_run_that_published_it(trained, tmp_path):
    out = tmp_path / "demo"
    published = trained.publish(out)
    assert check_target(trained.job(out)) == []
    before = contents(out)
    for other in ({"name": "other"}, {"store": str(tmp_path / "elsewhere")}):
        job = trained.job(out).model_copy(update=other)
        with pytest.raises(BadInput, match=f"another run.*publish.to={out}-2"):
            check_target(job)
        assert is_still_there(published, out)
    history = RunHistory(job, "", Head(), [TRAINING], METRICS, Costs((), {}))
    with pytest.raises(BadInput, match=r"Nothing was published\. The trained model is safe"):
        publish_run(history, trained.model, TEXTS, print)
    assert contents(out) == before
    save_file({"w": torch.zeros(1)}, out / "model.safetensors")
    assert not is_still_there(published, out)


def test_a_process_whose_run_was_taken_over_does_not_replace_the_model(trained, tmp_path):
    out, asked = tmp_path / "demo", []

    def confirm():
        """Let another owner publish just after this process was told that the run is its own."""
        asked.append("")
        if len(asked) > 1:
            raise Fenced("taken over")
        trained.publish(out, license="mit")

    with pytest.raises(Fenced, match="taken over"):
        trained.publish(out, license="apache-2.0", confirm=confirm)
    assert "license: mit" in (out / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"], "nothing is left beside it"
    asked.append("")
    before = contents(out)
    with pytest.raises(Fenced, match="taken over"):
        trained.publish(out, license="apache-2.0", confirm=confirm)
    assert contents(out) == before


# ---------------------------------------------------------------- a GGUF file


def test_a_gguf_file_and_a_modelfile_lie_next_to_the_weights(trained, tmp_path):
    out, says = tmp_path / "demo", list[Note]()
    published = trained.publish(out, gguf=True, says=says)
    assert published["gguf"] == "model-f16.gguf"
    assert (out / "model-f16.gguf").read_bytes().startswith(b"GGUF")
    assert (out / "Modelfile").read_text().startswith("FROM ./model-f16.gguf\n")
    assert "ollama create demo -f Modelfile" in (out / "README.md").read_text()
    assert any("its tensors are the model's" in message.text for message in says)
    again = trained.publish(out)  # an export with a GGUF file is one of Pion's, and is replaced
    assert "gguf" not in again
    assert not (out / "model-f16.gguf").exists()
    assert "Ollama" not in (out / "README.md").read_text()


def test_a_failed_conversion_leaves_the_published_weights_and_says_so(tmp_path):
    (tmp_path / "model").mkdir()
    too_large = Trained(tmp_path / "model")
    weights = load_file(too_large.model / "model.safetensors")
    weights["blocks.0.attention.v_proj.weight"][0, 0] = 1e6  # infinite in f16
    save_file(weights, too_large.model / "model.safetensors")
    out, says = tmp_path / "demo", list[Note]()
    published = too_large.publish(out, gguf=True, says=says)
    assert "With --type f32 nothing is rounded" in published["gguf_failed"]
    assert any("published without a GGUF file" in message.text for message in says)
    assert set(contents(out)) == set(EXPORT_FILES) - {"chat_template.jinja"}
    assert "Ollama" not in (out / "README.md").read_text()


def test_a_gguf_file_that_can_not_be_or_of_an_adapter_is_refused_before_training(tmp_path):
    (tmp_path / "model").mkdir()
    other = Trained(tmp_path / "model", softcap=15.0)
    message = r"publish\.gguf: GGUF can't express this model: .*softcap 15\.0.*Nothing was started"
    with pytest.raises(BadInput, match=message):
        check_target(other.job(tmp_path / "demo", gguf=True))
    sft = {"sft__lora": {"rank": 2}, "sft__optimizer": "adamw"}
    publish = {"to": str(tmp_path / "demo"), "adapter": True, "gguf": True}
    with pytest.raises(BadInput, match="publishes LoRA's additions alone"):
        check_target(tiny_job(publish=publish, **sft))


# ---------------------------------------------------------------- the Hub


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
