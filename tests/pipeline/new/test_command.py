"""`pion new` on data as people have them: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.base.keep import tokenizer_of_base
from pipeline.base.read_job import read_job
from pipeline.job import Job
from pipeline.new.options import name_of
from pipeline.rent.check.command import run_checks
from pipeline.stages.prepare import prepare_pretrain, prepare_sft
from tests.pipeline.conftest import Pion
from tests.pipeline.rent.conftest import SkyHome
from tests.support import own_data
from tests.support.chat_templates import CHATML
from tests.support.hub_server import hub_server
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.instruct_model import write_instruct_model
from tests.support.published_models import publish

CHATS = (
    *("Alpaca", "ShareGPT", "messages", "prompter and bot", "prompt and completion"),
    "JSON in a text",
)


@pytest.fixture(autouse=True)
def quick_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return write_instruct_model(tmp_path_factory.mktemp("plain") / "base", "gpt2", None)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    return write_instruct_model(tmp_path_factory.mktemp("chat") / "base", "smollm2", CHATML)


def made(pion: Pion, data: Path, *options: str) -> tuple[Job, str]:
    """Return the job that `pion new` writes for data in this folder, and what it prints."""
    code, printed, errors = pion("new", data.name, *options)
    assert code == 0, errors
    (written,) = Path.cwd().glob("*.yaml")
    return read_job(written), printed


def refused(pion: Pion, data: Path, *options: str) -> str:
    """Return why `pion new` refuses data; nothing was written."""
    before = sorted(Path.cwd().rglob("*"))
    code, _, errors = pion("new", data.name, *options)
    assert code == 2
    assert sorted(Path.cwd().rglob("*")) == before
    return errors


@pytest.mark.parametrize("layout", own_data.GOOD)
def test_the_job_for_each_layout_passes_check(
    layout: str, here: Path, pion: Pion, sky_home: SkyHome, plain_base: Path
) -> None:
    data = own_data.GOOD[layout](here)
    start = str(plain_base) if layout in CHATS else "none"
    columns = ["--text-column", "body"] if layout == "CSV" else []
    job, printed = made(pion, data, "--from", start, *columns)
    assert job.train_stages == (["sft"] if layout in CHATS else ["pretrain"])
    wrong = [row for row in run_checks(job, None) if row.ok is False]
    assert not wrong
    assert printed.count("⟦") >= 3
    assert re.search(r"price          (<\$0\.01|\$0\.\d\d): about \d+ min on ", printed)
    if layout == "prompter and bot":
        assert "roles with other names: 'Prompter' as user, 'bot' as assistant" in printed


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("a line that is not JSON", "articles.jsonl:3 is not valid JSON"),
        ("a .gz that is cut off", "cut.jsonl.gz: damaged gzip file"),
        ("not UTF-8", "letters.txt:2: not UTF-8 text; convert it with: iconv"),
    ],
)
def test_what_is_broken_is_named_with_file_and_line(
    layout: str, said: str, here: Path, pion: Pion
) -> None:
    assert said in refused(pion, own_data.BROKEN[layout](here), "--from", "none")


def test_what_is_broken_can_be_left_out(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    data = own_data.cut_gzip(here)
    job, printed = made(pion, data, "--from", "none", "--skip-unreadable")
    assert "1 left out" in printed
    assert job.data.sources[0].model_dump()["path"] == "cut-texts.jsonl"
    assert not [row for row in run_checks(job, None) if row.ok is False]


def test_a_question_is_answered_by_an_option(here: Path, pion: Pion) -> None:
    said = refused(pion, own_data.csv_texts(here))
    assert "Decide with --text-column title or --text-column body" in said
    said = refused(pion, own_data.customers(here))
    assert "--roles 'customer=user,agent=assistant'" in said


def test_text_is_really_prepared(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    job, _ = made(pion, own_data.texts_folder(here), "--from", "none")
    report = prepare_pretrain(job, here / "prepared", lambda message: None).report
    assert report["train_rows"] >= job.section("pretrain").global_batch
    assert report["held_out_rows"] >= 1


def test_conversations_are_really_prepared_with_the_template_of_the_base(
    here: Path, pion: Pion, sky_home: SkyHome, chat_base: Path
) -> None:
    data = own_data.alpaca(here)
    job, printed = made(pion, data, "--from", str(chat_base))
    assert "<|im_start|>assistant\n    ⟦" in printed
    tokenizer = tokenizer_of_base(job, here / "base")
    report = prepare_sft(job, here / "prepared", tokenizer, lambda message: None).report
    assert report["train_rows"] >= job.section("sft").global_batch
    counted = sum(report["sources"][0][f"{split}_conversations"] for split in ("train", "held_out"))
    assert counted == 200


def test_text_and_conversations_are_two_stages_if_that_is_asked_for(
    here: Path, pion: Pion, sky_home: SkyHome
) -> None:
    own_data.texts_folder(here)
    own_data.messages(here)
    folder = here / "all"
    folder.mkdir()
    for name in ("my-texts", "chats.jsonl"):
        (here / name).rename(folder / name)
    assert "--use text, --use chats, or --use both" in refused(pion, folder)
    job, _ = made(pion, folder, "--use", "both", "--from", "none")
    assert job.train_stages == ["pretrain", "sft"]


# ---------------------------------------------------------------- what `check` would refuse


@pytest.fixture
def no_price_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("pipeline.new.proposal.on_the_market")


CALL = {"type": "function", "function": {"name": "track_letter", "arguments": {"number": 7}}}


@pytest.mark.usefixtures("no_price_is_asked")
@pytest.mark.parametrize("layout", ["messages", "JSON in a text"])
def test_calls_that_the_template_can_not_write_are_refused_wherever_they_are(
    layout: str, here: Path, pion: Pion, chat_base: Path
) -> None:
    """`pion check` would refuse the job: it writes all conversations, as `pion run` does."""
    data = own_data.GOOD[layout](here)
    lines = data.read_text().splitlines()
    record = json.loads(lines[149])
    turns = json.loads(text) if isinstance(text := record["messages"], str) else text
    turns[-1] |= {"content": "", "tool_calls": [CALL]}
    record["messages"] = json.dumps(turns) if isinstance(text, str) else turns
    data.write_text("\n".join([*lines[:149], json.dumps(record), *lines[150:]]))
    said = refused(pion, data, "--from", str(chat_base))
    assert f"{data.name}:150: answer 1 calls 'track_letter', and the chat template does not" in said


def test_a_line_says_that_only_a_part_was_tried(
    here: Path, pion: Pion, chat_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.new.look.FEW_BYTES", 1000)
    _, printed = made(pion, own_data.GOOD["messages"](here), "--from", str(chat_base))
    assert re.search(r"the template wrote the first \d+: `pion check` tries the others", printed)


@pytest.mark.usefixtures("no_price_is_asked")
def test_what_is_too_little_is_said_before_prices_are_asked(
    here: Path, pion: Pion, plain_base: Path
) -> None:
    data = own_data.sharegpt(here, 1)
    assert "too little to train on" in refused(pion, data, "--from", str(plain_base))


@pytest.mark.parametrize("content", ["question,answer\ra,b\r", "q,,a\n1,2,3\n"])
def test_where_nothing_can_be_read_no_copy_without_it_is_advised(
    content: str, here: Path, pion: Pion
) -> None:
    data = here / "old.csv"
    data.write_text(content)
    said = refused(pion, data, "--from", "none")
    assert "old.csv:1: the " in said
    assert "Correct them. Nothing was written." in said


# ---------------------------------------------------------------- one message each


def test_an_empty_folder(here: Path, pion: Pion) -> None:
    (here / "empty").mkdir()
    assert "empty is empty: it has no files" in refused(pion, here / "empty")


def test_a_folder_with_the_weights_of_a_model(here: Path, pion: Pion, plain_base: Path) -> None:
    (here / "model").symlink_to(plain_base)
    said = refused(pion, here / "model")
    assert "has the weights of a model" in said
    assert "pion new DATA --from model" in said


def test_no_price_for_any_card(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    sky_home.lose_catalog()
    _, printed = made(pion, own_data.jsonl_texts(here), "--from", "none")
    assert "price          no price for any card today" in printed


def test_a_base_without_a_template(
    here: Path, pion: Pion, sky_home: SkyHome, plain_base: Path
) -> None:
    _, printed = made(pion, own_data.sharegpt(here), "--from", str(plain_base))
    assert printed.count("has no chat template, so Pion's own is used") == 1
    assert "<|assistant|>\n    ⟦" in printed


@pytest.mark.soak
def test_200_gigabytes_are_looked_at_in_part_and_sized_by_the_money(
    here: Path, pion: Pion, sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.new.sample.LOOK_BYTES", 200_000)
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
    less, printed = made_again(pion, data, "--dollars", "0.5")
    assert less.model.preset == "pion2-max-nano"
    assert less.data.seq_len == 2048
    assert float(printed.partition("price          $")[2].partition(":")[0]) <= 0.5


def made_again(pion: Pion, data: Path, *options: str) -> tuple[Job, str]:
    for written in Path.cwd().glob("*.yaml"):
        written.unlink()
    return made(pion, data, *options)


@pytest.mark.soak
def test_english_conversations_start_from_smollm2_on_the_hub(
    here: Path, pion: Pion, sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, instruct = own_data.messages(here), "HuggingFaceTB/SmolLM2-360M-Instruct"
    with hub_server() as hub:
        hub.use(monkeypatch, here / "hf", token=None)
        publish(hub, instruct, here / "scratch")
        job, printed = made(pion, data)
        assert job.model.base == instruct
        assert not [row for row in run_checks(job, None) if row.ok is False]
    assert "<|im_start|>assistant\n    ⟦" in printed


def test_a_hub_that_is_away_is_said_and_the_job_is_written(
    here: Path, pion: Pion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    data = own_data.messages(here)
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    called = [
        {"role": "user", "content": "Is it wet?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]
    data.write_text(json.dumps({"messages": called}) + "\n" + data.read_text())
    code, printed, errors = pion("new", data.name)
    assert code == 0, errors
    assert "assistant: ⟦Yes.⟧" in printed
    assert "HuggingFaceTB/SmolLM2-360M-Instruct can't be looked up now" in printed
    assert "model: {from: HuggingFaceTB/SmolLM2-360M-Instruct}" in Path("chats.yaml").read_text()


# ---------------------------------------------------------------- files


def test_a_dry_run_prints_the_job_and_writes_nothing(
    here: Path, pion: Pion, sky_home: SkyHome, plain_base: Path
) -> None:
    data = own_data.alpaca(here)
    before = sorted(here.iterdir())
    code, printed, _ = pion("new", data.name, "--from", str(plain_base), "--dry-run")
    assert code == 0
    assert sorted(here.iterdir()) == before
    assert "\nname: alpaca\n" in printed
    assert "{kind: jsonl, path: alpaca-chats.jsonl}" in printed


def test_no_file_is_ever_overwritten(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    data = own_data.jsonl_texts(here)
    Path("articles.yaml").write_text("mine")
    assert "Choose another: --out FILE" in refused(pion, data)
    code, _, errors = pion("new", data.name, "--from", "none", "--out", "other.yaml")
    assert code == 0, errors
    assert read_job("other.yaml").name == "other"
    assert Path("articles.yaml").read_text() == "mine"
    assert "its folder does not exist" in refused(pion, data, "--out", "no/such.yaml")


def test_a_secret_in_the_data_is_not_shown(here: Path, pion: Pion, sky_home: SkyHome) -> None:
    token = "hf_" + "aB3" * 12
    records = [{"text": f"{token} {own_data.words(80, n)}"} for n in range(300)]
    _, printed = made(pion, own_data.write_lines(here / "t.jsonl", records), "--from", "none")
    assert token not in printed
    assert token not in Path("t.yaml").read_text()
    assert "<token>" in printed


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("chats.jsonl.gz", "chats"),
        ("my texts (2).csv", "my-texts-2"),
        ("=+x.json", "x"),
        ("чат.txt", "mine"),
    ],
)
def test_the_run_is_named_after_the_data(data: str, name: str) -> None:
    assert name_of(Path(data)) == name


@pytest.mark.parametrize("dollars", ["0", "-1", "nan", "inf"])
def test_an_amount_of_money_that_is_none_is_refused(here: Path, pion: Pion, dollars: str) -> None:
    said = refused(pion, own_data.jsonl_texts(here, 3), f"--dollars={dollars}")
    assert "must be above 0" in said
