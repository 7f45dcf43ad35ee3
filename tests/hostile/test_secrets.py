"""A secret, wherever it was written, is refused or travels, and is shown in no place."""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

import pipeline.commands.cli
from pion.errors import BadInput
from pipeline.cli import main
from pipeline.console.masking import masked
from pipeline.rent.credentials import refuse_recorded_secrets
from pipeline.rent.managed import launch as launching
from tests.pipeline.rent.conftest import sky_home as sky_home  # a fixture
from tests.support.fake_provider import FakeProvider
from tests.support.jobs import tiny_dict

MARKER = "unmistakableMARKER0123456789"
WITH_SLASH = "unmistakable/MARKER+0123456789"
STORE = "s3://bucket/runs"
RENTAL = """
workdir: .
resources:
  infra: runpod
  accelerators: A40
  disk_size: 60
  job_recovery: {strategy: EAGER_NEXT_REGION, recover_on_exit_codes: [75]}
envs: {JOB: null, OVERRIDES: ""}
secrets: {HF_TOKEN: "", AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: ""}
run: pion run "$JOB"
"""
S3_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
LAUNCH = ("launch", "jobs/tiny.yaml", "--on", "rental.yaml")


@dataclass
class Desk:
    """A checkout on this machine, with everything that Pion could print, write or send from it."""

    folder: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def set(self, **variables):
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def rental(self, **sections):
        """Change sections of the SkyPilot YAML. Mappings are merged."""
        config = yaml.safe_load(RENTAL)
        for name, value in sections.items():
            before = config.get(name)
            merge = isinstance(value, dict) and isinstance(before, dict)
            config[name] = {**before, **value} if merge else value
        (self.folder / "rental.yaml").write_text(yaml.safe_dump(config))

    def job(self, **changes):
        changes = {"store": STORE, **changes}
        (self.folder / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dict(**changes)))

    def pion(self, *arguments) -> tuple[int, str]:
        """Run a command; return its exit code and everything that it printed."""
        code = main(list(arguments))
        return code, "".join(self.capture.readouterr())

    def refused(self, *arguments) -> str:
        """Return what a refused command printed. It has shown and written no secret."""
        code, printed = self.pion(*arguments)
        assert code == 2, printed
        assert hides(printed + self.written())
        return printed

    def written(self):
        """Return the content of every file below the test's folder, except what the test wrote."""
        planted = ("rental.yaml", "tiny.yaml", "config")
        files = [p for p in self.folder.parent.rglob("*") if p.is_file() and p.name not in planted]
        return "".join(f"{path}\n{path.read_bytes().decode(errors='replace')}" for path in files)


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir(exist_ok=True)  # SkyHome makes it, too
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    found = Desk(folder, monkeypatch, capsys)
    found.rental()
    found.job()
    return found


def hides(text):
    """Return whether no part of a marker is in the text, in any spelling."""
    return not any(
        part in text for part in ("unmistakable", "MARKER", quote(WITH_SLASH, safe=""), "KEYID")
    )


# ---------------------------------------------------------------- userinfo in URLs

URLS = {
    "S3": f"s3://KEYID:{MARKER}@bucket/runs",
    "S3, a slash in the secret": f"s3://KEYID:{WITH_SLASH}@bucket/runs",
    "S3, only a secret": f"s3://{MARKER}@bucket/runs",
    "Hub": f"hf://user:{MARKER}@repo/name",
    "https": f"https://user:{MARKER}@host.example/x",
    "http with a port": f"http://user:{MARKER}@127.0.0.1:9000",
}


COMMANDS = (
    "run jobs/tiny.yaml store=URL",
    "run jobs/tiny.yaml publish.to=URL",
    "run jobs/tiny.yaml data.sources=[{kind:text,path:URL}]",
    "launch jobs/tiny.yaml --on rental.yaml --dry-run store=URL",
    "check jobs/tiny.yaml store=URL",
    "plan jobs/tiny.yaml store=URL",
    "prove jobs/tiny.yaml --store URL",
    "status URL/demo",
    "checkpoints URL/demo",
    "stop URL/demo",
    "fork URL/demo new",
    "report URL/demo",
    "watch URL/demo",
    "rentals URL/demo",
    "generate URL/demo --prompt a",
    "export URL/demo out",
    "URL",
)
# All commands refuse a URL with the same function, so each has one, and one command has them all.
ARGUMENTS = [(command, "S3") for command in COMMANDS]
ARGUMENTS += [(COMMANDS[0], kind) for kind in URLS if kind != "S3"]


@pytest.mark.parametrize(("command", "kind"), ARGUMENTS)
def test_userinfo_in_an_argument_is_refused_and_not_repeated(desk, command, kind):
    printed = desk.refused(*command.replace("URL", URLS[kind]).split())
    assert "a user name or a password before the @" in printed
    assert "in the environment" in printed


@pytest.mark.parametrize(
    ("field", "url", "instead"),
    [
        ("store", URLS["S3"], S3_KEYS),
        ("publish__to", URLS["Hub"], "set HF_TOKEN in the environment"),
        ("tokenizer", {"hub": URLS["https"]}, "set HF_TOKEN for the Hub"),
        ("model", {"from": URLS["S3, a slash in the secret"]}, S3_KEYS),
        ("data__sources", [{"kind": "text", "path": URLS["https"]}], "set HF_TOKEN for the Hub"),
        ("no_such_field", URLS["S3"], S3_KEYS),
    ],
)
def test_userinfo_in_a_job_file_is_refused_by_its_field(sky_home, desk, field, url, instead):
    desk.job(**{field: url})
    for command in (("run", "jobs/tiny.yaml"), ("check", "jobs/tiny.yaml"), LAUNCH):
        words = " ".join(desk.refused(*command).replace("│", " ").split())
        assert f"jobs/tiny.yaml: `{field.replace('__', '.')}" in words
        assert instead in words


@pytest.mark.parametrize(
    ("variable", "instead"),
    [
        ("AWS_ENDPOINT_URL", S3_KEYS),
        ("AWS_ENDPOINT_URL_S3", S3_KEYS),
        ("HF_ENDPOINT", "set HF_TOKEN in the environment"),
        ("WANDB_BASE_URL", "set WANDB_API_KEY in the environment"),
    ],
)
def test_userinfo_in_an_endpoint_is_refused_naming_the_variable(desk, variable, instead):
    for value in (URLS["https"], f"user:{MARKER}@host.example"):
        desk.set(**{variable: value})
        for command in (("run", "jobs/tiny.yaml"), ("status", "s3://bucket/x"), LAUNCH):
            printed = desk.refused(*command)
            assert printed.startswith(f"error: {variable} is a URL with a user name or a password")
            assert instead in printed


def test_userinfo_in_the_endpoint_of_a_profile_is_refused(desk, tmp_path):
    (tmp_path / "home" / ".aws").mkdir()
    (tmp_path / "home" / ".aws" / "config").write_text(
        f"[default]\nendpoint_url = {URLS['https']}\n"
    )
    for command in ("status s3://bucket/x", "run jobs/tiny.yaml"):
        printed = desk.refused(*command.split())
        assert "the S3 endpoint (AWS_ENDPOINT_URL) is a URL with a user name" in printed


def test_honest_urls_are_accepted():
    from pipeline.console.masking import holds_userinfo, is_url_with_userinfo

    for url in (
        "s3://bucket/prefix",
        "s3://bucket/a@b",
        "hf://user/name@main",
        "https://host.example",
        "http://127.0.0.1:9000/path@x",
        "http://[::1]:9000",
        "file:///home/me@work/runs",
        "file://user:x@/runs",
        "user/name@v1.0",
        "docker:user/image@sha256:0123",
        "ssh://git@github.com/me/code",
        "me@host:folder",
        "https://user:$TOKEN@host.example",
        "https://${TOKEN}@host.example",
    ):
        assert not is_url_with_userinfo(url), url
        assert not holds_userinfo(f"see {url}, or [{url}]"), url


def test_a_long_text_is_searched_once():
    """The time must not grow with the square of the length: that would be days."""
    for part in ("a", "a:/", "a://", "a@", "https://a:b", "hf_"):
        text = part * (1_000_000 // len(part))
        assert len(masked(text, {})) >= len(text) // 2


def test_a_prompt_may_hold_anything(desk):
    code, printed = desk.pion("generate", "nothing", "--prompt", URLS["https"])
    assert (code, "no model 'nothing'" in printed) == (2, True)


# ---------------------------------------------------------------- what SkyPilot gets


PRIVATE = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{MARKER}\n-----END OPENSSH PRIVATE KEY-----"
FORMS = (
    f"AKIA{'MARKER7X' * 2}",
    f"sk-proj-{'MARKER7x' * 5}",
    f"curl -H 'Authorization: Bearer {MARKER}'",
    f"curl -H 'authorization: Basic {MARKER}=='",
    f"github_pat_{'MARKER7x' * 5}",
    PRIVATE,
)
SHOWN = (
    *FORMS,
    f"export hf_token={MARKER}",
    f"DBPASSWD: {MARKER}",
    f"a=b; accessToken='{MARKER}' pion run",
)


@pytest.mark.parametrize("text", FORMS)
def test_a_secret_of_a_known_form_is_masked(text):
    shown = masked(f"before {text} after", {})
    assert hides(shown)
    assert shown.startswith("before ")


@pytest.mark.parametrize("text", SHOWN)
def test_a_script_with_a_secret_is_refused_by_its_form_or_name(text):
    with pytest.raises(BadInput, match="setup has a") as refusal:
        refuse_recorded_secrets({"setup": f"echo a\n{text}"}, "rental.yaml", {})
    assert hides(str(refusal.value))


@pytest.mark.parametrize(
    "text",
    [
        "for key in a b; do sort --key=2 $key; done\npython -c 'sorted(x, key=len)'",
        'HF_TOKEN=$TOKEN pion run\nexport ssh_key=~/.ssh/id\ncurl -H "Authorization: Bearer $T"',
        "tokenizer: bpe\nmax_tokens: 5\nmonkey=3 sk-learn-contrib-extra-packages\ncd $PWD; PWD=x",
    ],
)
def test_what_holds_no_secret_is_accepted(text):
    refuse_recorded_secrets({"run": text, "setup": text}, "rental.yaml", {})
    assert masked(text, {}) == text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"envs": {"HF_TOKEN": MARKER}}, "envs.HF_TOKEN is a secret"),
        ({"envs": {"MY_PASSWORD": MARKER}}, "envs.MY_PASSWORD is a secret"),
        ({"envs": {"WANDB_API_KEY": 123456789012345}}, "envs.WANDB_API_KEY is a secret"),
        ({"envs": {"INNOCENT": f"x{MARKER}"}}, "envs.INNOCENT has the value of AWS_SECRET_ACCESS"),
        ({"envs": {"AWS_ENDPOINT_URL": URLS["https"]}}, S3_KEYS),
        ({"envs": {"AWS_ENDPOINT_URL": f"u:{MARKER}@host"}}, S3_KEYS),
        ({"envs": {"DATABASE": f"postgres://u:{MARKER}@host/x"}}, "envs.DATABASE is a URL"),
        ({"envs": {"HTTPS_PROXY": URLS["https"]}}, "envs.HTTPS_PROXY is a URL"),
        ({"run": f"HF_TOKEN={MARKER}xy pion run"}, "run has the value of AWS_SECRET_ACCESS_KEY"),
        ({"run": f"export MY_TOKEN='{WITH_SLASH}'\npion run"}, "run has a value of MY_TOKEN"),
        ({"setup": f"curl {URLS['https']}"}, "setup is a URL with"),
        ({"run": f"curl -H 'Bearer hf_{'MARKER' * 6}'"}, "run has a token or key"),
        ({"envs": {"DBPASSWD": MARKER}}, "envs.DBPASSWD is a secret"),
        ({"envs": {"hf_token": MARKER}}, "envs.hf_token is a secret"),
        ({"file_mounts": {"/x": URLS["https"]}}, "file_mounts./x is a URL"),
        ({"workdir": {"url": URLS["https"]}}, "workdir.url is a URL"),
        ({"secrets": {"A": WITH_SLASH}, "envs": {"B": WITH_SLASH}}, "envs.B has the value of A"),
    ],
)
def test_what_skypilot_would_show_is_refused(sky_home, desk, sections, words):
    desk.set(AWS_SECRET_ACCESS_KEY=MARKER)
    desk.rental(**sections)
    for command in (LAUNCH, (*LAUNCH, "--dry-run")):
        assert words in desk.refused(*command)


@pytest.mark.parametrize(
    "text", ["secrets: {A: [MARKER]}\nrum: x\n", "secrets: {A: MARKER\nrun: }\n", "MARKER: [a"]
)
def test_a_rental_that_can_not_be_read_is_refused_without_its_secrets(sky_home, desk, text):
    written = f"envs: {{JOB: null}}\n{text.replace('MARKER', MARKER)}"
    (desk.folder / "rental.yaml").write_text(written)
    assert "rental.yaml" in desk.refused(*LAUNCH, "--dry-run")


@pytest.mark.parametrize("argument", ["publish.description=MARKER", "evaluate.prompts=[MARKER]"])
@pytest.mark.parametrize("command", ["run", "launch"])
def test_an_override_with_a_secret_of_the_environment_is_refused(desk, argument, command):
    desk.set(HF_TOKEN=MARKER)
    on = ("--on", "rental.yaml") if command == "launch" else ()
    printed = desk.refused(command, "jobs/tiny.yaml", *on, argument.replace("MARKER", MARKER))
    assert f"the argument {argument.partition('=')[0]} has the value of HF_TOKEN" in printed


def test_secrets_travel_and_are_printed_written_and_recorded_nowhere(sky_home, desk):
    given = {name: f"{MARKER}{name}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY")}
    desk.set(**given, AWS_ACCESS_KEY_ID=f"{MARKER}ID", WANDB_API_KEY=f"{MARKER}W")
    desk.rental(secrets={"WRITTEN": f"{MARKER}written", "SHORT": "MARKER"})
    code, printed = desk.pion(*LAUNCH, "--dry-run", f"store=file://{desk.folder}/runs")
    assert code == 0, printed
    assert hides(printed)
    shown = yaml.safe_load(printed)["secrets"]
    written = {"WRITTEN": "<given in the YAML>", "SHORT": "<given in the YAML>"}
    assert shown == written  # this job needs no key
    code, printed = desk.pion(*LAUNCH, "--dry-run", "store=s3://bucket/runs")
    assert code == 0
    assert hides(printed)
    shown = yaml.safe_load(printed)["secrets"]
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert shown == dict.fromkeys(keys, "<from the environment>") | written

    sent = []

    def submit(task, name):
        sent.append(task)
        raise KeyboardInterrupt

    provider = FakeProvider()
    desk.patch.setattr(provider, "submit", submit)
    desk.patch.setattr(launching, "Provider", lambda: provider)
    desk.patch.setattr(launching, "require_checks", lambda order, **more: None)
    code, printed = desk.pion(*LAUNCH, f"store=file://{desk.folder}/runs")
    assert code == 130, printed
    (task,) = sent
    assert task.secrets["WRITTEN"].get_secret_value() == f"{MARKER}written"  # it does travel
    record = yaml.safe_dump(task.to_yaml_config(use_user_specified_yaml=True))
    assert "<redacted>" in record
    assert hides(printed + record + yaml.safe_dump(dict(task.envs)) + str(task.run))
    assert "rental.json" in desk.written()
    assert hides(desk.written())


# ---------------------------------------------------------------- bugs


@pytest.fixture
def buggy(desk):
    """A command with a bug, whose message and arguments have secrets."""

    words = f"{MARKER} {URLS['https']} {quote(WITH_SLASH, safe='')}\x1b[2J"

    def broken(args):
        raise RuntimeError(words)  # the traceback quotes this line

    desk.patch.setattr(pipeline.commands.cli, "_status", broken)

    def run():
        desk.set(HF_TOKEN=MARKER, AWS_SECRET_ACCESS_KEY=WITH_SLASH)
        return desk.pion("status", "demo")

    return run


def test_a_bug_file_holds_no_secret_and_is_for_its_owner_alone(desk, buggy):
    umask = os.umask(0)
    try:
        code, printed = buggy()
    finally:
        os.umask(umask)
    assert code == 1
    assert "this is a bug in Pion: RuntimeError: <HF_TOKEN> https://<hidden>@host" in printed
    assert hides(printed + desk.written())
    assert "\x1b" not in printed
    (file,) = (desk.folder.parent / "tmp").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "pion status demo" in file.read_text()
    assert "<AWS_SECRET_ACCESS_KEY>" in file.read_text()


def test_a_bug_without_room_for_its_file_ends_with_a_short_message(desk, buggy):
    desk.patch.setattr(tempfile, "tempdir", str(desk.folder / "not there"))
    code, printed = buggy()
    assert code == 1
    assert "could not be written to a file (No such file or directory)" in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 2
    assert hides(printed)
