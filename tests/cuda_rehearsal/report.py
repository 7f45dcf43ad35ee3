"""What a rehearsal hands back: its findings and its tensors, as JSON between two processes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["host_sync", "unpinned_copy", "wrong_device", "fp64"]

# A program prints what it hands back as the line after this line, because libraries print too.
MARKER = "--- reports of the rehearsal ---"


@dataclass(frozen=True)
class Finding:
    """One thing that costs time or fails on a card; watch.py explains the kinds."""

    kind: Kind
    operation: str  # as torch calls it, such as `aten._local_scalar_dense.default`
    where: str  # the innermost line of our code: `pion/model/norm_and_projection.py:20 in forward`

    def __str__(self) -> str:
        return f"{self.kind}: {self.operation} at {self.where}"


@dataclass
class Report:
    """What happened in one scenario.

    `tensors` has every tensor that remains afterwards, by name, as "cuda:0 torch.float32".
    `matmuls` counts the matrix products and attentions by the dtype of their inputs. `error` is the
    exception that ended the scenario, if there was one.
    """

    units: int = 0  # steps, micro-batches or tokens; the scenario says which
    findings: list[Finding] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    matmuls: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    def of_kind(self, kind: Kind) -> list[str]:
        """Return the findings of this kind, as text."""
        return [str(finding) for finding in self.findings if finding.kind == kind]


def hand_back(plain: Any) -> None:
    """Print something that JSON can hold, for `handed_back`."""
    print(f"\n{MARKER}\n{json.dumps(plain)}", flush=True)


def handed_back(output: str) -> Any:
    """Return what a program handed back, from its output. Raises ValueError if there is nothing."""
    _, marker, rest = output.partition(f"{MARKER}\n")
    if not marker:
        raise ValueError(f"a rehearsal printed no reports:\n{output}")
    return json.loads(rest.splitlines()[0])


def print_reports(reports: dict[str, Report]) -> None:
    """Print the reports, by name of their scenario, for `read_reports`."""
    hand_back({name: dataclasses.asdict(report) for name, report in reports.items()})


def read_reports(output: str) -> dict[str, Report]:
    """Return the reports in the output of a rehearsal. Raises ValueError if there are none."""
    reports = {}
    for name, fields in handed_back(output).items():
        findings = [Finding(**finding) for finding in fields.pop("findings")]
        reports[name] = Report(findings=findings, **fields)
    return reports
