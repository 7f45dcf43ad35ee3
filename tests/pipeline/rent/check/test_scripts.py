"""A script that a rental starts is copied to the machine, or is refused before anything is paid."""

import pytest

from pion.errors import BadInput
from pipeline.rent.check.scripts import refuse_missing_script
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.pipeline.rent.conftest import YAML

RUN = 'run: pion run "$JOB"'


@pytest.fixture
def refuse(sky_home, tmp_path):
    """Check a rental with this `run:`, whose machine gets the folder `copied`."""

    def check(run, more="", left_out=()):
        root = tmp_path / "copied"
        root.mkdir(exist_ok=True)
        text = YAML.replace(RUN, run)
        rental = read_sky_yaml(sky_home.yaml(text=f"workdir: {root}\n{more}{text}"))
        refuse_missing_script(rental, root, {root / name for name in left_out})

    return check


def test_the_boot_script_of_a_checkout_that_is_not_here_is_refused_with_its_line(refuse):
    with pytest.raises(BadInput) as refusal:
        refuse("# bash sky/boot.sh boots\nrun: exec bash sky/boot.sh")
    assert "rental.yaml line 11: `run` starts sky/boot.sh" in str(refusal.value)
    assert "exit code 127" in str(refusal.value)
    assert "pion init runpod-spot" in str(refusal.value)


@pytest.mark.parametrize(
    "run", ["run: . ./env.sh", "run: python -u env.py", "setup: ./env.sh\nrun: echo"]
)
def test_a_script_of_ones_own_is_refused_unless_it_is_there(refuse, run, tmp_path):
    with pytest.raises(BadInput, match=r"Put the script into the `workdir`"):
        refuse(run)
    for name in ("env.sh", "env.py"):
        (tmp_path / "copied" / name).touch()
    refuse(run)
    with pytest.raises(BadInput, match="is left out by"):
        refuse(run, left_out=("env.sh", "env.py"))


def test_a_script_in_file_mounts_is_looked_for_where_it_comes_from(refuse, tmp_path):
    mounts = f"file_mounts: {{{{~/code: {tmp_path}, /data: 's3://bucket/data'}}}}\n"
    with pytest.raises(BadInput, match=f"no such file here: {tmp_path}/a.sh"):
        refuse("run: bash ~/code/a.sh", mounts)
    (tmp_path / "a.sh").touch()
    refuse("run: bash ~/code/a.sh && bash /data/b.sh", mounts)


@pytest.mark.parametrize(
    "run",
    [
        "run: bash /opt/boot.sh",
        "run: git clone https://example.com/x && bash x/go.sh",
        "setup: echo true > go.sh\nrun: bash go.sh",
        "run: 'cd /srv && python serve.py'",
    ],
)
def test_a_script_that_the_image_or_the_machine_may_have_is_not_refused(refuse, run):
    refuse(run)
