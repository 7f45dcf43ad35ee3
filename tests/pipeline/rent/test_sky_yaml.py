"""A rental is a SkyPilot task YAML, read by SkyPilot, that says which job to run."""

import os
import sys

import pytest

from pion.errors import BadInput
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.support.waiting import run_to_end


def test_every_machine_a_yaml_accepts_is_a_candidate(sky_home):
    resources = """any_of:
  - accelerators: A40
    use_spot: true
  - accelerators: {RTXA4000: 2}
    infra: runpod/CA"""
    sky_yaml = read_sky_yaml(sky_home.yaml(resources))
    assert [str(candidate) for candidate in sky_yaml.candidates] == [
        "1 × A40 spot on RunPod",
        "2 × RTXA4000 on demand on RunPod/CA",
    ]
    assert [candidate.disk_gb for candidate in sky_yaml.candidates] == [60, 60]
    assert not sky_yaml.in_order


def test_alternatives_in_order_stay_in_order(sky_home):
    ordered = "ordered:\n  - {accelerators: RTXA4000}\n  - {accelerators: A40}"
    sky_yaml = read_sky_yaml(sky_home.yaml(ordered))
    assert sky_yaml.in_order
    assert [candidate.gpu for candidate in sky_yaml.candidates] == ["RTXA4000", "A40"]


def test_a_variable_without_a_value_is_none(sky_home):
    assert read_sky_yaml(sky_home.yaml()).envs == {"JOB": None, "OVERRIDES": ""}


def test_a_secret_outside_of_its_section_is_refused_and_not_repeated(sky_home):
    text = "envs: {{JOB: null, MY_TOKEN: hidden}}\nrun: x\n"
    with pytest.raises(BadInput, match=r"envs\.MY_TOKEN is a secret.* `secrets:`") as refusal:
        read_sky_yaml(sky_home.yaml(text=text))
    assert "hidden" not in str(refusal.value)


def test_a_yaml_that_is_not_there_is_refused_naming_the_closest(sky_home):
    path = sky_home.yaml()
    with pytest.raises(BadInput, match=f"no SkyPilot YAML at .*did you mean {path}"):
        read_sky_yaml(path.with_name("rentals.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resources: [", "not YAML"),
        ("- a list", "a list"),
        ("envs: {{MODEL: x}}\nrun: x\n", "envs has no JOB, so the machine would not know what to"),
        ("", "0 documents"),
        ("envs: {{JOB: null}}\n---\nenvs: {{JOB: null}}\n", "2 documents"),
        ("envs: {{JOB: null}}\nrum: x\n", "did you mean 'run'"),
        ("envs: {{JOB: null}}\nenvs: {{JOB: x}}\nrun: x\n", "envs"),
        ("envs: [JOB]\nrun: x\n", "envs is a list"),
        ("envs: {{JOB: null}}\nresources: {{use_spot: maybe}}\n", "use_spot"),
        ("envs: {{JOB: null}}\nresources: {{accelerators: 'A40:0'}}\n", "positive"),
    ],
)
def test_what_skypilot_does_not_accept_is_refused_naming_the_file(text, words, sky_home):
    path = sky_home.yaml(text=text)
    with pytest.raises(BadInput, match=words) as refusal:
        read_sky_yaml(path)
    assert str(path) in str(refusal.value)


def test_a_misspelt_cloud_is_named_with_the_closest(sky_home):
    path = sky_home.yaml("any_of:\n  - {infra: runpd/CA, accelerators: A40}")
    with pytest.raises(BadInput, match="SkyPilot has no cloud 'runpd'; did you mean RunPod"):
        read_sky_yaml(path)


def test_without_skypilot_a_folder_of_that_name_is_not_taken_for_it(tmp_path):
    """Without SkyPilot, `import sky` finds the project's folder of YAMLs."""
    (tmp_path / "sky").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[1]); sys.modules.pop('sky', None)\n" + (
        "import importlib.machinery, types\n"
        "sky = types.ModuleType('sky'); sky.__path__ = [sys.argv[1] + '/sky']\n"
        "sys.modules['sky'] = sky\n"
        "from pipeline.rent.skypilot import sky_module\n"
        "from pion.errors import BadInput\n"
        "try: sky_module()\n"
        "except BadInput as error: print(error)\n"
    )
    done = run_to_end([sys.executable, "-c", code, str(tmp_path)], env=os.environ)
    assert "SkyPilot is not installed here" in done.stdout, done.stderr
    assert "uv sync" in done.stdout


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, r"line \d+, column \d+: more than 10,000 values"),
        ("envs: " + "[" * 100 + "]" * 100, "line 1, column 70: nested deeper than 64 levels"),
        ("#" * (1 << 20) + "\n", "has more than 1,048,576 bytes"),
    ],
)
def test_a_yaml_that_is_too_much_is_refused(tmp_path, text, reason):
    path = tmp_path / "sky.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=rf"sky\.yaml {reason}"):
        read_sky_yaml(path)


def test_a_yaml_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "sky.yaml")
    with pytest.raises(BadInput, match=r"sky\.yaml is not a regular file"):
        read_sky_yaml(tmp_path / "sky.yaml")
