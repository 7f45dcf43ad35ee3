"""`pion new` on data as people have them: what it prints, what it writes, what it refuses."""

import json
import re
import threading
from pathlib import Path

import pytest

from pipeline.base.job_with_base import read_job
from pipeline.base.keep import tokenizer_of_base
from pipeline.new.command import OF_EDITORS, SCHEMA
from pipeline.new.options import name_of
from pipeline.rent.check.command import run_checks
from pipeline.stages.prepare import prepare_part
from tests.paths import REPOSITORY
from tests.pipeline.new.conftest import made, refused
from tests.support import own_data
from tests.support.chat_templates import CHATML
from tests.support.hub_server import hub_server
from tests.support.instruct_model import write_instruct_model
from tests.support.published_models import publish

CHATS = (
    *("Alpaca", "ShareGPT", "messages", "prompter and bot", "prompt and completion"),
    "JSON in a text",
)


# By default one layout of text, one whose copy is written, and one with other roles.
SHOWN = ("JSON Lines of text", "Alpaca", "prompter and bot")


@pytest.mark.parametrize(
    "layout",
    [pytest.param(n, marks=() if n in SHOWN else pytest.mark.soak) for n in own_data.GOOD],
)
def test_the_job_for_each_layout_passes_check(layout, here, pion, sky_home, plain_base):
    data = own_data.GOOD[layout](here)
    start = str(plain_base) if layout in CHATS else "none"
    columns = ["--text-column", "body"] if layout == "CSV" else []
    job, printed = made(pion, data, "--from", start, *columns)
    assert job.train_stages == (["sft"] if layout in CHATS else ["pretrain"])
    assert not [row for row in run_checks(job, None) if row.ok is False]
    assert printed.count("⟦") >= 2
    assert f"  pion launch {job.name}.yaml --on runpod-spot store=hf://USER/runs" in printed
    assert re.search(r"price          (<\$0\.01|\$0\.\d\d): about \d+ min on ", printed)
    if layout == "prompter and bot":
        assert "roles with other names: 'Prompter' as user, 'bot' as assistant" in printed


ASKED, CHAT = "What is 6 times 7?", [{"role": "user", "content": "What is 6 times 7?"}]
RULE = {"style": "rule", "ground_truth": "42"}
# Of each layout that rewards can read: the stage of the job, and its line about rewards.
REWARDS = [
    ({"question": ASKED, "answer": "6 * 7 = 42\n#### 42"}, "sft", "#   rewards: [number]"),
    ({"prompt": CHAT, "solution": "$42$"}, "sft", "#   rewards: [number]"),
    ({"prompt": ASKED, "answer": "It is 42, I think"}, "sft", ""),
    ({"prompt": ASKED, "ground_truth": 42}, "reinforce", "  rewards: [number]"),
    ({"prompt": CHAT, "reward_model": RULE}, "reinforce", "  rewards: [number]"),
    ({"messages": CHAT, "ground_truth": "yes"}, "reinforce", "  rewards: [exact]"),
]


@pytest.mark.parametrize(("record", "stage", "line"), REWARDS)
def test_right_answers_are_for_rewards(record, stage, line, here, pion, sky_home, plain_base):
    records = [json.loads(json.dumps(record).replace("What", f"{n}: what")) for n in range(90)]
    data = own_data.write_lines(here / "asked.jsonl", records)
    job, _ = made(pion, data, "--from", str(plain_base))
    assert job.train_stages == [stage]
    text = Path("asked.yaml").read_text()
    assert "".join(re.findall(r"(?m)^.* rewards: \[\w+\]", text)) == line
    Path("asked.yaml").write_text(re.sub(r"(?m)^# (?=reinforce:|  )", "", text))
    assert ("reinforce" in read_job(Path("asked.yaml")).train_stages) == bool(line)
    # This model has learned nothing yet, so the row of rewards says that it learns nothing.
    rows = [row for row in run_checks(job, None) if row.name != "rewards"]
    assert not [row for row in rows if row.ok is False or "Error" in row.words]


def two_names(folder):
    (folder / "old.csv").write_text("answer,answer\na,b\n")
    return folder / "old.csv"


NONE = "--from", "none"
# What is written, the options, and what the refusal says.
REFUSED = {
    "a line": (own_data.bad_line, NONE, ("articles.jsonl:3 is not valid JSON",)),
    "two names": (two_names, NONE, ("old.csv:1: the ", "Correct them. Nothing was written.")),
    "no folder": (own_data.jsonl_texts, ("--out", "no/such.yaml"), ("its folder does not exist",)),
    **{
        f"${dollars}": (own_data.jsonl_texts, (f"--dollars={dollars}",), ("must be above 0",))
        for dollars in ("0", "-1", "nan", "inf")
    },
}


@pytest.mark.parametrize(("write", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_used_is_refused_in_its_own_words(write, options, said, here, pion):
    errors = refused(pion, write(here), *options)
    assert [words for words in said if words not in errors] == []


def later_mistake(folder):
    """Write texts with a line that is no record after the sample."""
    data = own_data.jsonl_texts(folder)
    data.write_text(data.read_text() + "[1, 2]\n")
    return data


@pytest.mark.parametrize("write", [own_data.cut_gzip, later_mistake])
def test_what_is_broken_can_be_left_out(write, here, pion, sky_home, monkeypatch):
    monkeypatch.setattr("pipeline.new.read.SAMPLE_BYTES", 150_000)
    job, printed = made(pion, write(here), "--from", "none", "--skip-unreadable")
    assert re.search(r"wrote \w+-texts\.jsonl: [\d,]+ records, 1 left out", printed)
    assert job.data.sources[0].model_dump()["path"].endswith("-texts.jsonl")
    assert not [row for row in run_checks(job, None) if row.ok is False]


def edited(change):
    """Return what writes conversations that were changed."""

    def write(folder):
        data = own_data.messages(folder)
        records = [json.loads(line) for line in data.read_text().splitlines()]
        return own_data.write_lines(data, [change(n, r) for n, r in enumerate(records)])

    return write


def with_tools(number, record):
    """Add tools, which the template drops: these are most of the bytes."""
    find = {"name": "find", "description": "a room " * 90}
    return record | {"tools": [{"type": "function", "function": find}]}


def shortened(number, record):
    """Shorten the answer, except of one conversation in twelve."""
    if number % 12:
        record["messages"][-1]["content"] = "Yes."
    return record


@pytest.mark.parametrize("words", [None, "other words about long conversations"])
def test_rows_have_room_for_what_a_template_adds(words, here, pion, sky_home, monkeypatch):
    if words:  # the row length is not read from words
        for module in ("pipeline.data.remarks", "pipeline.stages.prepare"):
            monkeypatch.setattr(f"{module}.shortened", lambda *of_report: (words, True))
    system = "<|im_start|>system\n" + "You are a helpful assistant. " * 40 + "<|im_end|>\n"
    settings = {"max_position_embeddings": 1024}
    base = write_instruct_model(here / "base", "smollm2", system + CHATML, **settings)
    job, _ = made(pion, edited(shortened)(here), "--from", str(base))
    assert job.sft.seq_len > 256


PREPARED = [
    (own_data.texts_folder, "pretrain", {"held_out": 0.05}),
    (own_data.alpaca, "sft", {"epochs": 3}),
    # At 2e-5, a small start would learn nothing.
    (edited(with_tools), "sft", {"lr": 1e-3, "min_lr": 1e-4}),
    # A row has room for 19 of 20 conversations.
    (edited(shortened), "sft", {"seq_len": 256}),
]


@pytest.mark.parametrize(("write", "stage", "fields"), PREPARED)
def test_its_rows_are_those_that_prepare_gives(
    write, stage, fields, here, pion, sky_home, chat_base
):
    data = write(here)
    job, printed = made(pion, data, "--from", str(chat_base) if stage == "sft" else "none")
    section = job.section(stage)
    values = section.model_dump() | (job.data.model_dump() if stage == "pretrain" else {})
    assert {name: values[name] for name in fields} == fields
    tokenizer = None
    if stage == "sft":
        assert "<|im_start|>assistant\n    ⟦" in printed
        tokenizer = tokenizer_of_base(job, here / "base")
    report = prepare_part(job, stage, here / "prepared", lambda message: None, tokenizer).report
    assert report["train_rows"] >= section.global_batch
    assert report["held_out_rows"] >= 1
    if stage == "sft":
        assert f"passes over about {report['train_rows']} rows" in printed
        counts = report["sources"][0]
        assert counts["train_conversations"] + counts["held_out_conversations"] == 200


def test_text_and_conversations_are_two_stages_if_that_is_asked_for(here, pion, sky_home):
    folder = here / "all"
    folder.mkdir()
    own_data.texts_folder(folder)
    own_data.messages(folder)
    job, _ = made(pion, folder, "--use", "both", "--from", "none")
    assert (job.train_stages, job.pretrain.weight_decay) == (["pretrain", "sft"], 0.1)


# ---------------------------------------------------------------- what `check` would refuse


CALL = {"type": "function", "function": {"name": "track_letter", "arguments": {"number": 7}}}


@pytest.mark.usefixtures("no_price_is_asked")
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("layout", ["messages", "JSON in a text"])
def test_calls_that_the_template_can_not_write_are_refused_wherever_they_are(
    layout, copied, here, pion, chat_base
):
    """`pion check` would refuse the job: it writes all conversations, as `pion run` does."""
    data = own_data.GOOD[layout](here)
    lines = data.read_text().splitlines()
    record = json.loads(lines[149])
    turns = json.loads(text) if isinstance(text := record["messages"], str) else text
    turns[-1] |= {"content": "", "tool_calls": [CALL]}
    record["messages"] = json.dumps(turns) if isinstance(text, str) else turns
    lines[149] = json.dumps(record)
    data.write_text("\n".join(lines))
    if copied:  # a list over several lines is no JSON Lines
        data = data.rename(data.with_suffix(".json"))
        data.write_text("[" + ",\n".join(lines) + "]")
    said = refused(pion, data, "--from", str(chat_base))
    assert f"{data.name}:150: answer 1 calls 'track_letter', and the chat template does not" in said


def test_prices_are_not_waited_for(here, pion, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr("pipeline.new.price.on_the_market", lambda *given: never.wait())
    monkeypatch.setattr("pipeline.new.price.PRICE_SECONDS", 0.1)
    _, printed = made(pion, own_data.jsonl_texts(here), "--from", "none")
    assert "no price for any card today (SkyPilot did not say them within 0 s)" in printed
    never.set()


# ---------------------------------------------------------------- one message each


NO_PRICE = "price          no price for any card today (SkyPilot's catalog can't be read"
TEMPLATE = "has no chat template, so Pion's own is used"
PART = "the job was tried on the head of the data: `pion check` tries more"
# What is written, the options, whether there are prices, and what is printed once.
PRINTED = {
    "a preset": (own_data.jsonl_texts, NONE, False, [NO_PRICE, "   pion2-max-nano ", "  pion, tr"]),
    "for vLLM": (
        own_data.jsonl_texts,
        (*NONE, "--runs-in", "vllm"),
        False,
        [NO_PRICE, "   pion2-nano ", "runs in        llama.cpp, vLLM"],
    ),
    "no template": (
        own_data.sharegpt,
        ("--from", "BASE"),
        True,
        [TEMPLATE, "<|assistant|>\n    ⟦"],
    ),
    "a part": (own_data.jsonl_texts, NONE, True, [PART]),
}


@pytest.mark.parametrize(("write", "options", "priced", "lines"), PRINTED.values(), ids=PRINTED)
def test_what_the_person_should_know_is_said_once(
    write, options, priced, lines, here, pion, sky_home, plain_base, monkeypatch
):
    if not priced:
        sky_home.lose_catalog()
    if PART in lines:
        monkeypatch.setattr("pipeline.new.read.SAMPLE_BYTES", 100_000)
    options = [str(plain_base) if option == "BASE" else option for option in options]
    _, printed = made(pion, write(here), *options)
    assert {line: printed.count(line) for line in lines} == dict.fromkeys(lines, 1)


@pytest.mark.soak
def test_200_gigabytes_are_looked_at_in_part_and_sized_by_the_money(
    here, pion, sky_home, monkeypatch
):
    monkeypatch.setattr("pipeline.new.read.SAMPLE_BYTES", 200_000)
    # So long that rows have 2,048 tokens: other tests trace the same models at this length.
    data = own_data.jsonl_texts(here, 200, length=1200)
    with data.open("r+b") as file:
        file.truncate(200 << 30)  # a hole: it takes no room on the disk
    _, printed = made(pion, data)
    assert "Looked at the first part of 1 file, 201 kB" in printed  # to the end of a text
    price = float(printed.partition("price          $")[2].partition(":")[0])
    assert 2 < price <= 20
    assert "would cost $" in printed
    assert "% of the text, but all of it is prepared first" in printed
    less, printed = made(pion, data, "--dollars", "0.5")
    assert less.model.preset == "pion2-max-nano"
    assert less.data.seq_len == 2048
    assert float(printed.partition("price          $")[2].partition(":")[0]) <= 0.5


@pytest.mark.soak
def test_questions_in_english_become_the_job_in_the_readme(here, pion, sky_home, monkeypatch):
    rows = [f"What do I feed an axolotl?,It eats {n} earthworms in a week.\n" for n in range(60)]
    data, instruct = here / "questions.csv", "HuggingFaceTB/SmolLM2-360M-Instruct"
    data.write_text("".join(["question,answer\n", *rows]))
    with hub_server() as hub:
        hub.use(monkeypatch, here / "hf", token=None)
        publish(hub, instruct, here / "scratch")
        job, printed = made(pion, data)
        assert job.model.base == instruct
        assert not [row for row in run_checks(job, None) if row.ok is False]
    assert "<|im_start|>assistant\n    ⟦" in printed
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"```yaml\n(name: questions\n.*?)```", readme, re.DOTALL)
    text = Path("questions.yaml").read_text("utf-8")
    numbers = re.compile(r"\d+ +|\d+")  # they depend on the data
    assert numbers.sub("", shown) in numbers.sub("", text)


def test_a_hub_that_is_away_is_said_and_the_job_is_written(here, pion, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    data = own_data.messages(here)
    called = [
        {"role": "user", "content": "Is it wet?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]
    data.write_text(json.dumps({"messages": called}) + "\n" + data.read_text())
    code, printed, errors = pion("new", data.name)
    assert code == 0, errors
    assert '{"messages": [{"role": "user", "content": "Is it wet?"}' in printed
    assert "HuggingFaceTB/SmolLM2-360M-Instruct can't be looked up now" in printed
    assert "Run the same command again" not in printed  # the file is there, so it would fail
    assert "model: {from: HuggingFaceTB/SmolLM2-360M-Instruct}" in Path("chats.yaml").read_text()


# ---------------------------------------------------------------- files


def test_a_dry_run_prints_the_job_and_writes_nothing(here, pion, sky_home, plain_base):
    data = own_data.alpaca(here)
    code, printed, _ = pion("new", data.name, "--from", str(plain_base), "--dry-run")
    assert code == 0
    assert not [*here.glob("*.yaml"), *here.glob("alpaca-*")]
    assert "\nname: alpaca\n" in printed
    assert "{kind: jsonl, path: alpaca-chats.jsonl}" in printed


def test_no_file_is_ever_overwritten(here, pion, sky_home):
    data = own_data.jsonl_texts(here)
    Path("articles.yaml").write_text("mine")
    assert "Choose another: --out FILE" in refused(pion, data)
    code, _, errors = pion("new", data.name, "--from", "none", "--out", "other.yaml")
    assert code == 0, errors
    assert read_job("other.yaml").name == "other"
    assert Path("articles.yaml").read_text() == "mine"


def test_a_secret_in_the_data_is_not_shown(here, pion, sky_home):
    token = "hf_" + "aB3" * 12
    records = [{"text": f"{token} {own_data.words(80, n)}"} for n in range(300)]
    _, printed = made(pion, own_data.write_lines(here / "t.jsonl", records), "--from", "none")
    assert token not in printed
    assert token not in Path("t.yaml").read_text()
    assert "<token>" in printed


def test_the_run_is_named_after_the_data():
    names = {
        "c.jsonl.gz": "c",
        "my texts (2).csv": "my-texts-2",
        "=+x.json": "x",
        "чат.txt": "mine",
    }
    assert {data: name_of(Path(data)) for data in names} == names


def test_editors_are_told_of_a_schema_that_is_next_to_the_job(here, pion):
    (here / SCHEMA).touch()
    data = own_data.GOOD["CSV"](here)
    command = ("new", str(data), "--text-column", "body", "--from", "none", "--dry-run")
    assert f"would be:\n\n{OF_EDITORS}\n# Written by: pion new" in pion(*command)[1]
