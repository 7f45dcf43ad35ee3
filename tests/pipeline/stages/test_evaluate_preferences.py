"""What preferences changed is measured before and after, in parts, from stored numbers if any."""

import dataclasses
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.data.chat.conversation import Turn, tokenize
from pion.data.chat.packing import Sided, pack_items
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.evaluation.item_scores import difference, mean, unpack
from pion.generation.generate import generate
from pipeline.data.prepared import SPLITS, open_data
from pipeline.job import Job
from pipeline.models.load import load_model_in
from pipeline.stages.measures import StageStart
from pipeline.training.reference.columns import columns_of, write_column, write_reference
from tests.pipeline.stages.test_evaluate import SEQ_LEN, Folder, World
from tests.pipeline.stages.test_evaluate_before_after import start_of
from tests.support.reference_world import numbers_of

ROW = 2 * SEQ_LEN
WORDS = ["on the mat.", "the dog ate.", "a bone.", "return a new list.", "of items."]


class PreferWorld(World):
    """A job with preferences, whose checkpoints are of all three training stages."""

    def __init__(self, root):
        super().__init__(root)
        self.models["prefer"] = self._checkpoint(root / "checkpoints" / "prefer", 3)
        _turn_around(self.models["prefer"])
        self.data["prefer"] = self._pairs(root / "pairs")

    def job(self, **prefer):
        job = super().job(continuations=0, ngram_order=0)
        settings = {"steps": 4, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], **prefer}
        dumped = job.model_dump(mode="json", by_alias=True) | {"prefer": settings}
        found = Job.model_validate(dumped)
        found._folder = self.root
        return found

    def evaluated(self, job, parts=None, start=None, **changed):
        """Return the results after `prefer`, the computed parts in words, and the kept parts."""
        kept = Folder() if parts is None else parts
        began = StageStart("sft", self.models["sft"]) if start is None else start
        results, said = self.run(job, kept, starts={"prefer": began}, **changed)
        return results["prefer"], said, kept

    def reference(self, folder, sums, dtype, residual="float32"):
        """Write the stored numbers of a reference for as many answers as each split has."""
        data, streams = open_data(self.data["prefer"]), {}
        for split in SPLITS:
            streams[split] = data.stream(split, 0, 1)
            counts = [*map(len, numbers_of(streams[split]))]
            rows = iter(np.split(sums(sum(counts)), np.cumsum(counts)[:-1]))
            for column in columns_of({split: streams[split]}):
                write_column(folder / column.name, [*islice(rows, column.rows)])
        about = {"weights": "5" * 64, "dtype": dtype, "residual": residual}
        write_reference(folder, "k" * 64, about)
        return folder

    def _pairs(self, folder):
        draw = np.random.default_rng(4)
        for split, count in (("train", 6), ("held_out", 30)):
            where = folder / "0" / split
            items = [self._pair(number // 2, draw) for number in range(count)]
            ids, flags = pack_items(items, ROW, self.tokenizer.pad)
            writer = ShardWriter(
                where,
                seq_len=ROW,
                vocab_size=self.tokenizer.vocab_size,
                rows_per_shard=4,
                conversations=True,
            )
            writer.append_rows(ids, flags)
            manifest = Manifest("pairs", ROW, self.tokenizer.vocab_size, writer.finish())
            manifest.write(where / "manifest.json")
        return self._dataset("prefer", folder)

    def held_out(self):
        """Return the held-out rows in the order of the evaluation."""
        job = self.job()
        return open_data(self.data["prefer"]).stream("held_out", job.seed, job.data.window)

    def _pair(self, prompt, draw):
        question = Turn("user", f"what is {prompt}?")
        texts = draw.choice(WORDS, 2, replace=False)
        sides = [tokenize(self.tokenizer, [question, Turn("assistant", text)]) for text in texts]
        return Sided(sides[0], True), Sided(sides[1], False)


def _turn_around(checkpoint):
    """Let the likeliest token be the least likely one: untrained models all repeat the last one."""
    state = load_file(checkpoint / "model.safetensors")
    save_file({**state, "norm.weight": -state["norm.weight"]}, checkpoint / "model.safetensors")


def sides_of(rows, row):
    """Return the lengths of the answers in a row."""
    sequences = rows.batch([row]).sequences
    return sequences.tokens[0][sequences.side[0] != 0].numpy()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return PreferWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world):
    return world.evaluated(world.job())


def test_both_models_are_measured_on_the_same_pairs(unbroken):
    result, said, _ = unbroken
    found = result["preferences"]
    assert (found["start"], found["kind"], found["items"]) == ("sft", "pairs", 30)
    assert found["prompts"] == 15  # two pairs have the same question
    assert {"raw", "normalized"} == found["before"].keys() == found["change"].keys()
    assert found["after"].keys() == {"raw", "normalized", "margin"}
    for name in ("raw", "normalized"):
        before, after, change = (found[side][name] for side in ("before", "after", "change"))
        for number in ("accuracy", "length_bias"):
            assert change[number] == pytest.approx(after[number] - before[number])
            assert change[f"{number}_sem"] > 0
    assert result["accuracy"] == found["after"]["margin"]["accuracy"]
    rules = found["rules"]
    assert rules["longer_wins"] + rules["shorter_wins"] == pytest.approx(1)
    assert rules["longer"] + rules["shorter"] <= 30
    assert [words for words in said if "preferences" in words or "answers of" in words] == [
        "evaluate: prefer model on held-out preferences",
        "evaluate: sft model on held-out preferences",
        "evaluate: answers of the prefer model to 15 held-out prompts",
        "evaluate: answers of the sft model to 15 held-out prompts",
    ]


def test_a_model_that_has_not_moved_has_changed_nothing(world):
    models = {**world.models, "prefer": world.models["sft"]}
    result, _, _ = world.evaluated(world.job(), models=models)
    found = result["preferences"]
    assert result["accuracy"] == 0.5  # ties
    assert found["before"]["raw"] == found["after"]["raw"]
    assert found["change"]["normalized"]["accuracy"] == 0
    assert found["moved"]["chosen"] == found["moved"]["rejected"] == 0
    answers = found["answers"]
    assert answers["before"] == answers["after"]
    assert answers["change"]["tokens"] == 0
    assert result["text_change"] == result["response_change"] == 0
    assert all(one["before"] == one["after"] for one in answers["shown"])


def test_each_side_has_the_answers_of_its_model(world, unbroken):
    shown = unbroken[0]["preferences"]["answers"]["shown"]
    tokenizer = world.tokenizer
    for side, stage in (("before", "sft"), ("after", "prefer")):
        model = load_model_in(world.models[stage])
        for one in shown:
            ids = generate(
                model,
                tokenizer.encode(one["prompt"]),
                stop_ids=[tokenizer.end_of_text],
                vocab_size=tokenizer.vocab_size,
                max_tokens=SEQ_LEN // 2,
                temperature=0,
            )
            assert one[side] == tokenizer.decode([*ids])
    assert any(one["before"] != one["after"] for one in shown)


def test_the_change_of_text_is_that_of_the_two_models_on_held_out_text(world, unbroken):
    result, _, kept = unbroken
    before = kept.load("sft.held_out")
    assert result["text_change"] == pytest.approx(result["bits_per_byte"] - before["bits_per_byte"])
    responses = kept.load("sft.responses")
    assert result["response_change"] == pytest.approx(
        result["response_loss"] - responses["response_loss"]
    )
    assert 0 < result["text_change_sem"] < result["bits_per_byte_sem"]


def test_without_text_of_its_own_the_other_text_is_measured_with_both(world):
    own = [{stage: of[stage] for stage in ("sft", "prefer")} for of in (world.models, world.data)]
    result, said, _ = world.evaluated(world.job(), models=own[0], data=own[1])
    assert [words for words in said if "other text" in words] == [
        "evaluate: sft model on other text",
        "evaluate: prefer model on other text",
    ]
    assert result["text_change"] != 0


def test_the_change_of_text_from_the_model_of_others_is_the_change_of_the_run(world):
    """Without a stage before `prefer`, that model was measured before training."""
    folder, job = world.models["sft"], world.job()
    job.sft = job.pretrain = None
    results, said = world.run(
        job,
        kept := Folder(),
        models={"prefer": world.models["prefer"]},
        data={"prefer": world.data["prefer"]},
        starts={"prefer": StageStart("base", folder)},
        start=start_of(world, folder, "text"),
    )
    change = results["change"]["text"]
    assert results["prefer"]["text_change"] == pytest.approx(change["bits_per_byte"])
    assert results["prefer"]["text_change_sem"] == pytest.approx(change["bits_per_byte_sem"])
    assert results["prefer"]["text_change"] != 0
    assert "response_change" not in results["prefer"]
    assert [words for words in said if "text" in words] == ["evaluate: prefer model on other text"]
    assert kept.load("base.text") is None


def test_stored_numbers_of_the_reference_say_what_the_start_gives(world, unbroken, tmp_path):
    kept = unbroken[2].load("sft.preferences")

    def by_number(count):
        """Return the sums in the order of the rows' numbers; `kept` has them in training order."""
        rows = world.held_out()
        if count != len(kept["sums"]):
            return np.full(count, -7.0)  # of the other split
        numbers = [rows.number_of(rows.place(i)) for i in range(rows.total_rows)]
        sizes = [len(sides_of(rows, i)) for i in range(rows.total_rows)]
        of_rows = np.split(np.array(kept["sums"]), np.cumsum(sizes)[:-1])
        return np.concatenate([of_rows[i] for i in np.argsort(numbers)])

    folder = world.reference(tmp_path / "reference", by_number, "float32")
    start = StageStart("sft", world.models["sft"], folder)
    result, said, parts = world.evaluated(world.job(), start=start)
    assert not any("sft model on held-out preferences" in words for words in said)
    assert parts.load("sft.preferences") is None
    expected = unbroken[0]["preferences"]
    assert result["preferences"] == expected | {"reference": "5" * 64}


@pytest.mark.parametrize("wrong", ["dtype", "residual", "damaged"])
def test_numbers_that_do_not_fit_are_not_used_and_the_start_is_measured(
    world, unbroken, tmp_path, wrong
):
    dtypes = {wrong: "bfloat16"}
    dtype, residual = (dtypes.get(name, "float32") for name in ("dtype", "residual"))
    folder = world.reference(tmp_path / "reference", lambda n: np.full(n, -3.0), dtype, residual)
    if wrong == "damaged":
        (folder / "held_out/0/shard_00000.reference.npy").write_bytes(b"no numbers")
    start = StageStart("sft", world.models["sft"], folder)
    result, said, _ = world.evaluated(world.job(), start=start)
    assert result["preferences"] == unbroken[0]["preferences"]
    assert any("the numbers of the reference are not used" in w for w in said) == (
        wrong == "damaged"
    )


def test_what_the_loss_compares_decides_the_accuracy(world):
    """Sums less those of the reference, means less those of it, or means alone."""
    draw, rows, parts = np.random.default_rng(0), world.held_out(), Folder()
    n = np.concatenate([sides_of(rows, i) for i in range(rows.total_rows)])
    before, after = (-draw.uniform(1, 3, len(n)) * n for _ in range(2))
    for model, sums in (("sft", before), ("prefer", after)):
        parts.save(f"{model}.preferences", {"sums": sums.tolist()})
    losses = ("dpo", "dpo-norm", "simpo")
    by_loss = {loss: world.evaluated(world.job(loss=loss), parts)[0] for loss in losses}
    means = by_loss["dpo"]["preferences"]
    for side, of in (("before", before / n), ("after", after / n)):
        accuracy = means[side]["normalized"]["accuracy"]
        assert accuracy == pytest.approx(float((of[0::2] > of[1::2]).mean()))
    values = {"dpo": after - before, "dpo-norm": (after - before) / n, "simpo": after / n}
    for loss, of in values.items():
        expected = float((of[0::2] > of[1::2]).mean())
        assert by_loss[loss]["accuracy"] == pytest.approx(expected)
    assert len({result["accuracy"] for result in by_loss.values()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_an_interrupted_evaluation_does_only_the_rest(world, unbroken, every):
    whole, said, everything = unbroken
    for room in range(0, len(everything.kept), every):
        parts = Folder(room)
        with pytest.raises(KeyboardInterrupt):
            world.evaluated(world.job(), parts)
        parts.room = 1000
        result, rest, _ = world.evaluated(world.job(), parts)
        assert result == whole
        assert parts.kept == everything.kept
        assert rest == said[room:]


def test_scores_of_single_pairs_and_answers_are_kept_to_compare_runs(world, unbroken):
    result, _, kept = unbroken
    items = kept.load("by_item")
    found = result["preferences"]
    of = {name: unpack(items[f"prefer.{name}"]) for name in ("accuracy", "raw_accuracy")}
    assert mean(of["accuracy"])[0] == pytest.approx(result["accuracy"])
    assert mean(of["accuracy"])[1] == pytest.approx(result["accuracy_sem"])
    assert mean(of["raw_accuracy"])[0] == pytest.approx(found["after"]["raw"]["accuracy"])
    tokens = unpack(items["prefer.answer_tokens"])
    assert mean(tokens)[0] == pytest.approx(found["answers"]["after"]["tokens"])
    assert difference(tokens, tokens)[0] == 0
    assert items["prefer.accuracy"]["key"].keys() == {"rows", "seed", "window", "data"}


def test_single_answers_have_an_accuracy_by_where_they_moved(world):
    job = world.job(loss="apo-zero")
    result, _, _ = world.evaluated(job, data=world.data | {"prefer": labels_of(world)})
    found = result["preferences"]
    assert (found["kind"], found["items"], found["desired"]) == ("labels", 60, 0.5)
    assert found["before"] == found["change"] == {}
    assert found["after"].keys() == {"margin"}
    assert "rules" not in found
    assert found["answers"]["prompts"] == 15


def labels_of(world):
    """Return the folder of the same answers as data with labels."""
    folder = world.root / "labels"
    shutil.copytree(world.data["prefer"], folder)
    for path in folder.rglob("manifest.json"):
        dataclasses.replace(Manifest.read(path), kind="labels").write(path)
    return folder


def test_a_model_that_predicts_nan_has_no_accuracy_and_writes_no_answer(world, tmp_path):
    model = load_model_in(world.models["prefer"])
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    folder = tmp_path / "broken"
    shutil.copytree(world.models["prefer"], folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    result, _, _ = world.evaluated(world.job(), models={**world.models, "prefer": folder})
    assert np.isnan(result["accuracy"])
    assert np.isnan(result["preferences"]["answers"]["after"]["stopped"])
    assert 0 <= result["preferences"]["before"]["raw"]["accuracy"] <= 1
