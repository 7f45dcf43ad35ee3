"""The optimizer that docs/optimizers.md adds is one: a class and a row are enough."""

import re
import sys
from types import ModuleType

import torch

from pion.model.params_and_flops import shapes_and_roles
from pion.train.optimizer.optimizer import Optimizer
from pion.train.optimizer.rule import Layout, Rule, state_bytes
from pion.train.optimizers import OPTIMIZERS, Row
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings
from tests.paths import REPOSITORY
from tests.support.tiny_config import drawn, tiny_config

PAGE = (REPOSITORY / "docs" / "optimizers.md").read_text("utf-8")


def test_a_file_and_a_row_are_an_optimizer(monkeypatch):
    file, row = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = ModuleType("pion.train.optimizer.signs")
    vars(module).update(torch=torch, Rule=Rule, Layout=Layout)
    exec(f"from __future__ import annotations\n{file}", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, each in eval(f"{{{row}}}", {"Row": Row}).items():
        monkeypatch.setitem(OPTIMIZERS, name, each)
    settings = TrainSettings(4, 1, lr=1e-2, weight_decay=0.0, optimizer="signs")
    config = tiny_config()
    model = drawn(config)
    optimizer, before = Optimizer(model, settings), model.embed.weight.clone()
    for param in model.parameters():
        param.grad = -torch.ones_like(param)
    optimizer.step(plan_at(settings, 0))
    torch.testing.assert_close(model.embed.weight, before + 1e-2)
    state = optimizer.state_tensors()
    assert {name.rsplit(".", 1)[1] for name in state} == {"mean"}
    predicted = sum(state_bytes("signs", role, shape) for shape, role in shapes_and_roles(config))
    assert predicted == sum(tensor.nbytes for tensor in state.values())
