"""What a process does once, as its last import, before its forks run commands.

A collection of garbage writes to each object that it looks at. In a fork, this copies the imported
modules, page by page, and takes longer than a tiny run trains. So they are left out of collections.
Each run would also measure the peak of the CPU for its MFU, read the versions of packages, and
build the validators of records. The forks inherit what is measured, read and built here.

To trace a step takes longer than a tiny run, too. Forks read what a step needs from the record, or
from the session's traces, whatever cache folder they have.
"""

import gc
import os
from pathlib import Path

import torch

from pion.train.hardware import peak_flops
from pion.train.memory_trace import remembered
from pipeline.report.results import Evaluated
from pipeline.state.head import Head
from pipeline.state.owner import code_version
from pipeline.state.record_json import _validator
from pipeline.state.shared.records import DataState
from tests.support.recorded_traces import TRACES, recorded, recorded_trace

torch.set_num_threads(1)  # as in the runs; a fork has no threads of its parent
peak_flops(torch.device("cpu"), "float32")
code_version()
for record in (DataState, Evaluated, Head):
    _validator(record)
remembered._trace = recorded_trace
recorded()
traces = Path(os.environ[TRACES]) if TRACES in os.environ else remembered._folder()
remembered._folder = lambda: traces
gc.collect()
gc.freeze()
