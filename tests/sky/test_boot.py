"""From a bare machine to `pion run`: what sky/boot.sh installs, and what its exit codes mean.

The script and its checks of the machine are the real ones. uv and the packages that uv would
install (pion, torch) are stand-ins that record their calls.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.rent.on_machine.torch_builds import BUILDS, choose_torch
from tests.paths import JOBS, REPOSITORY
from tests.support.waiting import PATIENCE_SECONDS, wait_until

BOOT_SECONDS = 120  # far above what a boot with stand-ins takes

UV = """#!/bin/bash
echo "$@" >>"$CALLS"
mkdir -p .venv/bin packages
cp "$PYTHON" .venv/bin/python
case $1 in
    sync) [ -z "$UV_SAYS" ] || { echo "$UV_SAYS" >&2; exit 1; }
          cp "$PION" .venv/bin/pion ;;
    pip) [ -z "$UV_PIP_SAYS" ] || { echo "$UV_PIP_SAYS" >&2; exit 1; } ;;
esac
"""
PYTHON = """#!/bin/bash
case $1 in
    -m) exec "$REAL_PYTHON" "$@" ;;
    *) echo packages ;;
esac
"""
TORCH = """
import os

with open(os.environ["CALLS"] + ".torch", "a") as calls:
    calls.write("imported\\n")
raise SystemExit(int(os.environ.get("TORCH_EXITS", 0)))  # the exit code of the whole test
"""
PION = """#!/bin/bash
printf '%s\\n' "$@" >"$CALLS.pion"; env >"$CALLS.environment"
trap 'echo stopped >>"$CALLS.pion"; exit 75' TERM
touch "$CALLS.ready"
while [ -n "$PION_WAITS" ]; do sleep 0.1; done
exit ${PION_EXITS:-0}
"""


@dataclass
class Machine:
    """A checkout on a rented machine, with SkyPilot's uv in the home folder."""

    folder: Path
    environment: dict[str, str]
    began: float = 0.0
    script: str = "sky/boot.sh"

    def start(self, **environment):
        return subprocess.Popen(
            ["bash", self.script],
            cwd=self.folder / "checkout",
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def boot(self, **environment):
        """Return the exit code and the output."""
        process = self.start(**environment)
        try:
            output, _ = process.communicate(timeout=BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
            raise AssertionError(f"the boot has not ended: {output}") from None
        return process.returncode, output

    @property
    def uv_calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def pion(self, what="pion"):
        """Return the arguments that `pion` got, one per line, or its "environment".

        "nodes" returns the arguments of sky/ray_nodes.sh, and "torch" whether torch was imported.
        """
        return (self.folder / f"calls.{what}").read_text().splitlines()

    @property
    def variables(self):
        """The environment of `pion`."""
        return dict(line.partition("=")[::2] for line in self.pion("environment"))

    def ran(self, what="pion"):
        """Return whether `pion`, or another name that `pion()` knows, was started."""
        return (self.folder / f"calls.{what}").exists()


def give_gpu(machine, card="NVIDIA A40, 580.95.05, 8.6"):
    """Return an environment in which `machine` has one GPU, and can't load libcuda.so.1.

    Its image has no torch: -S hides the packages of the Python that runs the tests.
    """
    tools = machine.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho '{card}'\n")
    (tools / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    for tool in ("nvidia-smi", "python3"):
        (tools / tool).chmod(0o755)
    (tools / "libcuda.so.1").touch()
    return {
        "PATH": f"{tools}:{machine.environment['PATH']}",
        "LD_LIBRARY_PATH": str(tools),
        "PION_EXPECT_GPUS": "1",
    }


@pytest.fixture
def machine(tmp_path):
    return bare_machine(tmp_path)


def bare_machine(tmp_path):
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    no_bytecode = shutil.ignore_patterns("__pycache__")
    for folder in ("sky", "pipeline/rent"):
        shutil.copytree(REPOSITORY / folder, checkout / folder, ignore=no_bytecode)
    for name in ("pipeline/__init__.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout / name)
    (checkout / "torch.py").write_text(TORCH)
    (checkout / "job.yaml").write_text("name: tiny\n")
    (home / ".local/bin").mkdir(parents=True)
    stand_ins = {home / ".local/bin/uv": UV, tmp_path / "python": PYTHON, tmp_path / "pion": PION}
    for path, text in stand_ins.items():
        path.write_text(text)
        path.chmod(0o755)
    return Machine(
        tmp_path,
        {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "CALLS": str(tmp_path / "calls"),
            "PYTHON": str(tmp_path / "python"),
            "REAL_PYTHON": sys.executable,
            "PION": str(tmp_path / "pion"),
            "JOB": "job.yaml",
            "PION_EXPECT_GPUS": "0",
        },
    )


EMPTY = {"HF_TOKEN": "", "AWS_ENDPOINT_URL": "", "PION_COMMIT": "", "AWS_DEFAULT_REGION": ""}


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """A machine without GPUs after a good boot, with variables that the YAML leaves empty."""
    machine = bare_machine(tmp_path_factory.mktemp("booted"))
    told = {"OVERRIDES": "pretrain.lr=1e-3 evaluate.prompts='[\"two words\"]'", "PION_UNTIL": "sft"}
    more = {"AWS_ACCESS_KEY_ID": "key", "PYTHONDONTWRITEBYTECODE": "1"}
    machine.began = time.time()
    code, output = machine.boot(**EMPTY, **told, **more)
    assert code == 0, output
    return machine


def test_it_ends_in_pion_run_with_the_job_the_overrides_and_the_last_stage(booted):
    overrides = ["pretrain.lr=1e-3", 'evaluate.prompts=["two words"]']
    assert booted.pion() == ["run", "job.yaml", *overrides, "--until", "sft"]
    assert not booted.ran("torch"), "without GPUs there is nothing for torch to test"


def test_a_search_takes_the_place_of_pion_run(machine):
    words = "try --vary 'evaluate.prompts=[a b],[c]' --hours=3.0"
    code, output = machine.boot(PION_COMMAND=words, OVERRIDES="pretrain.lr=1e-3", PION_EXITS="4")
    assert code == 4, output
    arguments = ["try", "--vary", "evaluate.prompts=[a b],[c]", "--hours=3.0"]
    assert machine.pion() == [*arguments, "job.yaml", "pretrain.lr=1e-3"]


def test_an_installed_pion_boots_from_its_wheel_next_to_the_folder(machine):
    folder, pion = machine.folder / "checkout", machine.folder / "home/pion"
    shutil.copytree(JOBS, folder / "jobs", ignore=shutil.ignore_patterns("*.json"))
    (pion / "sky").mkdir(parents=True)
    machine.script = str(shutil.copy(folder / "sky/boot.sh", pion / "sky"))
    wheel = pion / "pion_lm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder)
            package = "" if name.parts[0] == "pipeline" else "pipeline/package_data"
            packed.write(path, Path(package, name))
    for name in ("sky", "pipeline", "jobs"):
        shutil.rmtree(folder / name)
    for job in ("job.yaml", "demo"):
        code, output = machine.boot(JOB=job)
        assert code == 0, output
        assert machine.pion() == ["run", job]
        assert machine.variables["PWD"] == str(folder)
    sync, install = machine.uv_calls[-2:]
    assert sync.startswith("sync --no-default-groups ")
    assert sync.endswith(" --no-install-project")
    assert install.endswith(f" --no-deps --reinstall --python .venv/bin/python {wheel}")


in_soak = functools.partial(pytest.param, marks=pytest.mark.soak)
NODES = {"SKYPILOT_NUM_NODES": "2"}
TOKEN = "0123456789abcdef" * 4
ASK_FOR_TOKEN = "--secret PION_RAY_TOKEN=$(openssl rand -hex 32)"
REFUSED = [
    ({"PION_COMMAND": "try --vary '0.5"},
     "PION_COMMAND is not a list of shell words (No closing quotation)"),
    ({"PION_COMMAND": "try", "PION_RAY_TOKEN": TOKEN, **NODES},
     "PION_COMMAND=try works on one machine; launch without num_nodes"),
    ({"OVERRIDES": "store=s3://bucket/runs evaluate.prompts='[half"},
     "OVERRIDES is not a list of shell words (No closing quotation)"),
    ({"JOB": ""}, "JOB"),
    ({"JOB": "jobs/no-such.yaml"}, "JOB"),
    *(({"PION_RAY_TOKEN": token, **NODES}, ASK_FOR_TOKEN)
      for token in ("", "x" * 31, "with spaces " * 4, "line\n" * 20)),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "words"), REFUSED)
def test_what_no_machine_can_start_is_refused_before_anything_is_installed(
    machine, environment, words
):
    code, output = machine.boot(**environment)
    assert code == 2
    assert words in output
    assert "Traceback" not in output
    assert machine.uv_calls == []
    token = environment.get("PION_RAY_TOKEN")
    assert not token or token not in output
    assert words is not ASK_FOR_TOKEN or "Nothing was started" in output


@pytest.mark.parametrize("code", [4, 75])
def test_the_exit_code_of_pion_is_the_jobs(machine, code):
    assert machine.boot(PION_EXITS=str(code))[0] == code


def test_sigterm_reaches_pion(machine):
    process = machine.start(PION_WAITS="1")
    wait_until(lambda: machine.ran("ready") or process.poll() is not None, "pion run to start")
    assert process.poll() is None, process.communicate(timeout=PATIENCE_SECONDS)[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOOT_SECONDS) == 75
    assert machine.pion()[-1] == "stopped"


def test_a_machine_that_will_not_do_is_left_before_anything_is_installed(machine):
    code, output = machine.boot(PION_DISK_GB="1000000")
    assert code == 75
    assert "this machine won't do" in output
    assert "1000000 GB were requested" in output
    assert machine.uv_calls == []


def test_torch_tests_the_gpus_before_pion_run(machine):
    code, output = machine.boot(**give_gpu(machine))
    assert code == 0, output
    assert machine.uv_calls == ["sync --no-default-groups"], "a new driver gets the pinned torch"
    assert machine.pion("torch") == ["imported"]
    assert machine.pion() == ["run", "job.yaml"]


@pytest.mark.parametrize(
    ("exits", "code"),
    # 139 is a crash in the driver and 124 a hang. SkyPilot would recover neither code.
    [("139", 75), ("124", 75), ("1", 1)],
)
def test_a_gpu_that_torch_finds_bad_ends_the_boot_before_pion_run(machine, exits, code):
    exit_code, output = machine.boot(**give_gpu(machine), TORCH_EXITS=exits)
    assert exit_code == code, output
    assert machine.pion("torch") == ["imported"]
    assert not machine.ran()


def test_several_nodes_get_the_job_and_each_override_as_a_separate_word(machine):
    script = machine.folder / "checkout/sky/ray_nodes.sh"
    script.write_text('printf "%s\\n" "$@" >"$CALLS.nodes"\nexit 7\n')
    overrides = "pretrain.lr=1e-3 evaluate.prompts='[\"two words\"]'"
    code, output = machine.boot(
        **NODES, PION_RAY_TOKEN=TOKEN, OVERRIDES=overrides, PION_UNTIL="sft"
    )
    assert code == 7, output
    assert machine.pion("nodes") == [
        "job.yaml",
        "pretrain.lr=1e-3",
        'evaluate.prompts=["two words"]',
        "--until",
        "sft",
    ]
    assert not machine.ran(), "ray_nodes.sh starts pion"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("error: Failed to fetch: `https://pypi.org/simple/torch/`", 75),
        ("error: No space left on device (os error 28)", 75),
        ("× No solution found when resolving dependencies", 2),
        in_soak("error: Failed to parse: `pyproject.toml`", 2),
        in_soak("× Failed to build `something==1.0`", 2),
        (
            "× Failed to build `pion`\n  ├─▶ Failed to resolve requirements\n"
            "  ╰─▶ Failed to fetch: `https://pypi.org/simple/hatchling/`",
            75,
        ),
        in_soak("× Failed to build `pion`\n  ╰─▶ No space left on device (os error 28)", 75),
        in_soak("× No solution found\n  ╰─▶ Failed to download `hatchling`", 75),
    ],
)
def test_packages_that_can_not_be_installed_here_may_be_installable_elsewhere(machine, said, code):
    exit_code, output = machine.boot(UV_SAYS=said)
    assert exit_code == code
    assert said in output, "the reason is not shown"


def test_only_what_a_run_needs_is_installed(booted):
    assert "sync --no-default-groups" in booted.uv_calls[-1]
    assert not re.search("--group|--extra", booted.uv_calls[-1])


def test_what_the_job_asks_for_is_installed_too(machine):
    (machine.folder / "checkout/job.yaml").write_text("log:\n  wandb: pion\n")
    # An override inside a section asks for it, too.
    machine.boot(OVERRIDES="evaluate.lm_eval.tasks=[piqa] log.trackio=pion")
    assert "--extra evaluate" in machine.uv_calls[-1]
    assert "--extra trackio" in machine.uv_calls[-1]
    assert "--extra wandb" in machine.uv_calls[-1]
    assert "tensorboard" not in machine.uv_calls[-1]


def test_a_torch_of_the_image_is_used_and_nothing_it_brings_is_installed(machine):
    image = machine.folder / "image"
    (image / "torch").mkdir(parents=True)
    (image / "torch/__init__.py").write_text("raise ImportError('must not be imported to look')")
    (image / "torch/version.py").write_text("__version__ = '2.14.0'\ncuda: str = '13.0'\n")
    code, output = machine.boot(PYTHONPATH=str(image))
    assert code == 0, output
    assert f"torch 2.14.0 in this image's {image}" in output
    assert machine.uv_calls[0].startswith("venv")
    for package in ("torch", "triton", "nvidia-cublas", "nvidia-nccl-cu13", "cuda-toolkit"):
        assert f"--no-install-package {package}" in machine.uv_calls[-1]
    assert "--no-install-package torchvision" not in machine.uv_calls[-1]
    path_file = machine.folder / "checkout/packages/image-torch.pth"
    assert path_file.read_text() == f"{image}\n"


@pytest.mark.parametrize(
    ("card", "installs"),
    [
        ("NVIDIA A40, 550.54.15, 8.6", "--torch-backend cu126 torch==2.14.1"),
        ("NVIDIA GeForce RTX 5090, 570.133.20, 12.0", "--torch-backend cu128 torch==2.11.0"),
    ],
)
def test_an_old_driver_gets_the_torch_that_it_runs(machine, card, installs):
    code, output = machine.boot(**give_gpu(machine, card))
    assert code == 0, output
    assert f"torch {installs.rpartition('==')[2]}" in output
    sync, pip = machine.uv_calls
    assert "--no-install-package torch --" in sync
    assert "--no-install-package nvidia-cudnn-cu13" in sync
    assert "--inexact" in sync, "another start would take the build away"
    # Without --no-config, uv would refuse all but the pinned torch.
    assert pip == f"pip install --quiet --no-config --python .venv/bin/python {installs}"
    assert machine.pion("torch") == ["imported"], "nobody has tried these builds: the GPU test must"


def test_a_build_that_can_not_be_installed_may_not_be_needed_elsewhere(machine):
    old = give_gpu(machine, "NVIDIA A40, 550.54.15, 8.6")
    code, output = machine.boot(**old, UV_PIP_SAYS="× No solution found")
    assert code == 75
    assert "× No solution found" in output
    assert "driver needs torch==2.14.1 (cu126), and this build can't be installed" in output
    assert not machine.ran()


def test_several_nodes_have_the_same_torch_whatever_their_drivers_are(machine):
    old = give_gpu(machine, "NVIDIA A40, 550.54.15, 8.6")
    code, output = machine.boot(**old, **NODES, PION_RAY_TOKEN=TOKEN)
    assert code == 75
    assert "torch 2.15.0 for CUDA 13.2 needs driver 580" in output
    assert machine.uv_calls == []


def test_the_image_of_the_dockerfile_has_a_torch_that_old_drivers_run():
    text = (REPOSITORY / "sky/Dockerfile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    assert arguments.items() >= {"TORCH": BUILDS[0].version, "BACKEND": BUILDS[0].backend}.items()
    (copied,) = re.findall(r"^COPY (.*) /tmp/pion/$", text, re.MULTILINE)
    assert all((REPOSITORY / path).is_file() for path in copied.split())


def test_the_readme_names_each_yaml_and_each_build():
    text = (REPOSITORY / "sky/README.md").read_text()
    assert {path.name for path in (REPOSITORY / "sky").glob("*.yaml")} == set(
        re.findall(r"`sky/(\S+\.yaml)` \|", text)
    )
    torch, _ = choose_torch((REPOSITORY / "pyproject.toml").read_text(), None, None, any_build=True)
    for build in (torch, *BUILDS):
        cuda = ".".join(map(str, build.cuda[:2]))
        assert re.search(rf"{re.escape(build.version)} for CUDA\s{cuda}", text, re.IGNORECASE)


def test_what_the_yaml_leaves_empty_is_not_set(booted):
    environment = booted.variables
    assert not {"HF_TOKEN", "AWS_ENDPOINT_URL", "PION_COMMIT"} & environment.keys()
    assert environment["AWS_ACCESS_KEY_ID"] == "key"


def test_python_keeps_what_it_compiles_whatever_the_image_says(booted):
    assert "PYTHONDONTWRITEBYTECODE" not in booted.variables


def test_the_seconds_of_each_part_are_left_for_the_runs_events(booted):
    names = ("PION_BOOT_STARTED", "PION_BOOT_CHECKED", "PION_BOOT_SYNCED")
    times = [float(booted.variables[name]) for name in names]
    assert booted.began <= times[0] < times[1] < times[2] <= time.time()
