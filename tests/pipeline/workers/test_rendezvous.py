"""Workers that meet at a socket, as on several nodes. tests/runs/ has those of one machine."""

import subprocess
import sys

import psutil
import pytest

from pipeline.workers.rendezvous import interface_of, listen
from tests.support.doors import listening, own_address
from tests.support.waiting import read_until, rest_of

TWO_WORKERS = r"""
import json, os, sys
import torch
import torch.distributed as dist
from pipeline.workers.rendezvous import Meeting, join, listen
address = sys.argv[1]
read, write = os.pipe()
rank = 1 if os.fork() == 0 else 0
if rank == 0:
    where = listen(address, 2)
    os.write(write, json.dumps(where).encode())
else:
    where = tuple(json.loads(os.read(read, 1000)))
meeting = Meeting(2, seconds=60, at=where)
join(meeting, rank, "gloo", address)
value = torch.tensor([rank + 1])
dist.all_reduce(value)
os.write(1, f"sum {value.item()}\n".encode())
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.soak
def test_workers_on_several_nodes_listen_between_the_nodes_only():
    address = own_address()
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_WORKERS, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "sum 3" in read_until(process, "sum", lines=2)
    pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
    sockets = listening(pids)
    assert len(sockets) >= 3, "the rendezvous, and Gloo of each worker"
    addresses = {each.address for each in sockets}
    assert {found.removeprefix("::ffff:") for found in addresses} == {address}
    rest_of(process)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(OSError, match="assign"):
        listen("203.0.113.1", 2)


def test_the_interface_is_the_one_with_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None
