"""Why a rented machine is refused, before anything is installed on it."""

import ctypes
import os
import shlex
import subprocess
import sys
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass, field

import pytest

from pion.errors import Interrupted
from pipeline.rent.on_machine import boot_check
from pipeline.rent.on_machine.boot_check import (
    ANOTHER_MACHINE,
    BadMachine,
    main,
    probe_gpus,
    try_gpus,
)
from tests.paths import REPOSITORY
from tests.support.waiting import PATIENCE_SECONDS, run_to_end

SCRIPT = REPOSITORY / "pipeline" / "rent" / "on_machine" / "boot_check.py"
SIZE = 4096  # bytes that are written to a GPU and read back


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return the environment of a machine whose nvidia-smi runs a line of shell.

    Its libcuda.so.1 can't be loaded, even if the machine that runs the tests has one.
    """
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    def with_nvidia_smi(shell):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{shell}\n")
        program.chmod(0o755)
        return {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(tmp_path),
            "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        }

    return with_nvidia_smi


@dataclass
class Driver:
    """A fake libcuda on host memory. Its functions have the types from cuda.h.

    They are called as C functions, so a pointer that is passed as an int arrives cut in half.
    """

    gpus: int = 1
    fails: dict[str, int] = field(default_factory=dict)
    """Error codes to return, by the function's name."""
    lies: bool = False
    """Whether the memory flips a bit of what is written to it."""
    names: dict[int, bytes] = field(default_factory=lambda: {999: b"CUDA_ERROR_UNKNOWN"})
    contexts: set[int] = field(default_factory=set)
    memory: dict[int, bytearray] = field(default_factory=dict)
    current: int = 0
    tested: list[int] = field(default_factory=list)
    """The contexts in which memory was read."""

    def library(self):
        """Return the driver as ctypes.CDLL would load it."""

        class Library:
            pass

        library = Library()
        for name, function in {
            "cuInit": CFUNCTYPE(c_int, c_uint)(lambda flags: self.fails.get("cuInit", 0)),
            "cuDeviceGetCount": CFUNCTYPE(c_int, POINTER(c_int))(self.count),
            "cuDeviceGet": CFUNCTYPE(c_int, POINTER(c_int), c_int)(self.get),
            "cuDevicePrimaryCtxRetain": CFUNCTYPE(c_int, POINTER(c_void_p), c_int)(self.retain),
            "cuDevicePrimaryCtxRelease_v2": CFUNCTYPE(c_int, c_int)(self.release),
            "cuCtxSetCurrent": CFUNCTYPE(c_int, c_void_p)(self.set_current),
            "cuMemAlloc_v2": CFUNCTYPE(c_int, POINTER(c_ulonglong), c_size_t)(self.allocate),
            "cuMemcpyHtoD_v2": CFUNCTYPE(c_int, c_ulonglong, c_void_p, c_size_t)(self.write),
            "cuMemcpyDtoH_v2": CFUNCTYPE(c_int, c_void_p, c_ulonglong, c_size_t)(self.read),
            "cuMemFree_v2": CFUNCTYPE(c_int, c_ulonglong)(self.free),
            "cuGetErrorName": CFUNCTYPE(c_int, c_int, POINTER(c_char_p))(self.error_name),
        }.items():
            setattr(library, name, function)
        return library

    def count(self, count):
        count[0] = self.gpus
        return 0

    def get(self, device, index):
        device[0] = 40 + index
        return 0

    def retain(self, context, device):
        context[0] = 0x7F00_0000_0000 + device
        self.contexts.add(context[0])
        return self.fails.get("cuDevicePrimaryCtxRetain", 0)

    def release(self, device):
        self.contexts.remove(0x7F00_0000_0000 + device)
        return 0

    def set_current(self, context):
        self.current = context
        return 0 if context in self.contexts else 201

    def allocate(self, pointer, size):
        if self.current not in self.contexts:
            return 201
        pointer[0] = 0xA_0000_0000 + len(self.memory)
        self.memory[pointer[0]] = bytearray(size)
        return self.fails.get("cuMemAlloc_v2", 0)

    def write(self, pointer, source, size):
        self.memory[pointer][:] = ctypes.string_at(source, size)
        self.memory[pointer][17] ^= self.lies << 4
        return self.fails.get("cuMemcpyHtoD_v2", 0)

    def read(self, target, pointer, size):
        ctypes.memmove(target, bytes(self.memory[pointer]), size)
        self.tested.append(self.current)
        return self.fails.get("cuMemcpyDtoH_v2", 0)

    def free(self, pointer):
        del self.memory[pointer]
        return 0

    def error_name(self, error, name):
        name[0] = self.names.get(error)
        return 0 if error in self.names else 1


def boot(environment, *options):
    """Run the check as the boot script does, with a Python without torch."""
    return run_to_end([sys.executable, "-I", "-S", str(SCRIPT), *options], env=environment)


def test_a_machine_as_requested_passes_and_a_driver_that_can_not_be_loaded_is_left_for_torch(
    machine,
):
    done = boot(machine("echo 'NVIDIA A40, 580.95.05'") | {"PION_DISK_GB": "1"})
    assert done.returncode == 0, done.stderr
    assert "1 × NVIDIA A40 with driver 580.95.05" in done.stderr
    assert done.stdout.strip() == "", "nothing but the folder of the image's torch belongs here"
    assert "GPU memory not tested (OSError: " in done.stderr
    assert "libcuda.so.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_old_driver_that_tells_no_compute_capability_is_asked_again(machine):
    fails = "case $2 in *compute_cap*) echo 'not a valid field' >&2; exit 2 ;; esac"
    done = boot(machine(f"{fails}\necho 'NVIDIA A40, 470.57.02'"), "--any-build")
    assert done.returncode == ANOTHER_MACHINE
    assert "with driver 470.57.02: torch" in done.stderr


@pytest.mark.parametrize(
    ("nvidia_smi", "words"),
    [
        ("echo 'NVIDIA A40, 570.133.20'", "driver 570.133.20: torch"),
        ("echo 'Unable to determine the device handle: GPU is lost' >&2; exit 15", "GPU is lost"),
        ("true", "it has 0 GPU(s), but 1 were requested"),
    ],
)
def test_a_machine_whose_gpu_cannot_be_used_is_left_for_another(machine, nvidia_smi, words):
    done = boot(machine(nvidia_smi))
    assert done.returncode == ANOTHER_MACHINE
    assert words in done.stderr
    assert "Nothing was installed" in done.stderr


def test_memory_of_every_gpu_is_written_and_read_back():
    driver = Driver(gpus=2)
    assert probe_gpus(driver.library(), SIZE) == "memory of 2 GPU(s) written and read back"
    assert driver.tested == [0x7F00_0000_0000 + 40, 0x7F00_0000_0000 + 41]
    assert not driver.memory, "memory is left taken"
    assert not driver.contexts, "contexts are left"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("cuInit", "CUDA failed: cuInit returned"),
        ("cuDevicePrimaryCtxRetain", "GPU 0 failed: cuDevicePrimaryCtxRetain returned"),
        ("cuMemAlloc_v2", "GPU 0 failed: cuMemAlloc_v2 returned"),
        ("cuMemcpyHtoD_v2", "GPU 0 failed: cuMemcpyHtoD_v2 returned"),
        ("cuMemcpyDtoH_v2", "GPU 0 failed: cuMemcpyDtoH_v2 returned"),
    ],
)
def test_a_driver_that_fails_is_named_with_its_error(function, words):
    library = Driver(fails={function: 999}).library()
    with pytest.raises(BadMachine) as failure:
        probe_gpus(library, SIZE)
    assert str(failure.value) == f"{words} CUDA_ERROR_UNKNOWN (999)"


def test_an_error_without_a_name_is_its_number():
    library = Driver(fails={"cuInit": 999}, names={}).library()
    with pytest.raises(BadMachine, match="cuInit returned error 999"):
        probe_gpus(library, SIZE)
    del library.cuGetErrorName
    with pytest.raises(BadMachine, match="cuInit returned error 999"):
        probe_gpus(library, SIZE)


def test_a_driver_that_lacks_a_function_is_not_judged_by_the_others():
    library = Driver(fails={"cuInit": 999}).library()
    del library.cuMemFree_v2
    with pytest.raises(AttributeError, match="cuMemFree_v2"):
        probe_gpus(library, SIZE)


@pytest.mark.parametrize(
    ("driver", "code", "words"),
    [
        (Driver(), 0, "memory of 1 GPU(s) written and read back\n"),
        (Driver(lies=True), 75, "GPU 0's memory returned different bytes than were written\n"),
    ],
)
def test_the_probe_says_what_it_found_on_its_standard_output(
    driver, code, words, monkeypatch, capsys
):
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": driver.library()}.__getitem__)
    monkeypatch.setattr(sys, "argv", ["boot_check.py", "--probe"])
    assert main() == code
    assert capsys.readouterr().out == words


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("echo 'GPU 3 fails'; exit 75", "^GPU 3 fails$"),
        ("kill -KILL $$", r"crashed: signal 9 \(Killed\)"),
    ],
)
def test_a_probe_that_fails_or_crashes_condemns_the_machine(shell, words):
    with pytest.raises(BadMachine, match=words):
        try_gpus(["sh", "-c", shell], 60)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo Traceback >&2; echo NameError: oops >&2; exit 1'", "(NameError: oops)"),
        ("sh -c 'exit 3'", "(exit code 3)"),
        ("/no/such/python", "No such file or directory"),
    ],
)
def test_a_probe_that_is_broken_itself_condemns_nothing(command, words):
    said = try_gpus(shlex.split(command), 60)
    assert said.startswith("GPU memory not tested (")
    assert words in said


def test_a_probe_that_cannot_even_be_killed_is_not_waited_for(monkeypatch):
    stuck = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda process: stuck.append(process))
        with pytest.raises(BadMachine, match=r"no result after 0\.1 s"):
            try_gpus(["sleep", "600"], 0.1)
    assert stuck[0].poll() is None
    stuck[0].kill()
    stuck[0].communicate(timeout=PATIENCE_SECONDS)


def test_a_machine_whose_gpu_fails_the_probe_is_left_before_anything_is_installed(
    machine, monkeypatch, capsys
):
    for name, value in machine("echo 'NVIDIA A40, 580.95.05'").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["boot_check.py"])
    monkeypatch.setattr(boot_check, "PROBE", ("sh", "-c", "echo 'GPU 0 fails'; exit 75"))
    assert main() == ANOTHER_MACHINE
    printed = capsys.readouterr()
    assert "this machine won't do: GPU 0 fails. Nothing was installed" in printed.err
    assert printed.out == ""


def test_a_machine_without_the_gpu_that_was_paid_for_is_left_for_another(tmp_path):
    done = boot({"PATH": str(tmp_path), "SKYPILOT_NUM_GPUS_PER_NODE": "1"})
    assert done.returncode == ANOTHER_MACHINE
    assert "no nvidia-smi" in done.stderr


def test_a_machine_that_was_rented_without_gpus_needs_none(tmp_path):
    assert boot({"PATH": str(tmp_path), "SKYPILOT_NUM_GPUS_PER_NODE": "0"}).returncode == 0


def test_its_exit_code_is_the_one_that_is_recovered():
    assert Interrupted.exit_code == ANOTHER_MACHINE
