"""The old name of on_machine/gpu_check.py, for YAMLs that people wrote."""

import runpy

if __name__ == "__main__":
    runpy.run_module("pipeline.rent.on_machine.gpu_check", run_name="__main__")
