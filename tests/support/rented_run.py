"""A run on rented machines, written step by step by the real state layer without training."""

import json
import math
import random

import yaml

from pipeline.machine.rented import RentedMachine, claim_event
from pipeline.state.claim import claim_run
from pipeline.state.rows.metrics import EventLog, MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.stores.clock import Clock
from tests.support.clock import FakeClock
from tests.support.jobs import tiny_dict
from tests.support.states import an_entry, someone

PRICE = 0.4
SEQ_LEN, BATCH = 2048, 8
WORDS = ["the", "model", "returns", "a", "string", "of", "tokens", "and", "its", "argument"]


class RentedRun:
    """Writes what a run of `steps` pretraining steps writes, `seconds` a step, by a fake clock.

    A file of metrics has the rows of `flush_steps` steps.
    """

    def __init__(self, store, name="demo", *, steps=600, seconds=1.0, flush_steps=10, lr=3e-4):
        self.time = FakeClock()
        self.state = RunState(store, name, Clock(now=lambda: self.time.time))
        self.steps, self.lr = steps, lr
        self._seconds, self._flush_steps = seconds, flush_steps
        self._speed = SEQ_LEN * BATCH / seconds
        self._chance = random.Random(name)
        self.claim = None
        self.step = 0
        self.state.write_job("0123", yaml.safe_dump(self._job()))

    def _job(self):
        warm = max(1, self.steps // 20)
        return tiny_dict(
            pretrain__steps=self.steps,
            pretrain__lr=self.lr,
            pretrain__min_lr=float(f"{self.lr / 10:.6g}"),
            pretrain__warmup_steps=warm,
            sft=None,
        )

    def rent(self, gpu="A40", boot=90.0):
        """Claim the run from a new machine of that type, and continue from the last checkpoint."""
        rented_at = self.time.time
        self.time.time += boot
        owner = someone(host=f"{gpu.lower()}-host", started_at=rented_at)
        self.claim = claim_run(self.state, owner, take_over=True, price=PRICE)
        self.claim.heartbeat.stop()
        head = self.claim.set_job("0123")
        self.step = max((e.step for e in head.checkpoints if e.stage == "pretrain"), default=0)
        if "prepare" not in head.stages:
            self.claim.finish_stage("prepare", "d", {"rows": 99})
        self.claim.set_restore("pretrain", self.step)
        machine = RentedMachine(
            id=f"pod{self.claim.epoch}",
            host=owner.host,
            cloud="RunPod",
            region="CA",
            zone=None,
            cluster=None,
            gpu=gpu,
            count=1,
            nodes=1,
            spot=True,
            rented_at=rented_at,
            managed_job="1",
            phases={"machine up": 40.0, "install": 45.0},
        )
        about = claim_event(
            machine, PRICE, session=owner.session, started=rented_at, reason="no sign of life"
        )
        events = self.events()
        events.append(about.pop("event"), **about)
        events.append(
            "training", stage="pretrain", from_step=self.step, device=gpu, seq_len=SEQ_LEN
        )
        events.flush()

    def events(self):
        """Return the log of the present owner's events."""
        store, name = self.state.store, self.state.name
        return EventLog(store, name, self.claim.epoch, lambda: self.time.time)

    def train(self, steps):
        """Write the rows of the next steps, with an evaluation and a sample now and then."""
        metrics = MetricsLog(
            self.state.store, self.state.name, "pretrain", self.claim.epoch, lambda: self.time.time
        )
        every = max(1, self.steps // 20)
        for _ in range(steps):
            self.step += 1
            self.time.time += self._seconds
            metrics.append(self._row())
            if self.step % every == 0:
                metrics.append({"step": self.step, "held_out_loss": self._loss() + 0.05})
            if self.step % (5 * every) == 0:
                text = " ".join(self._chance.choices(WORDS, k=12)) + "."
                sample = {"prompt": "Return a new", "text": f" {text}"}
                metrics.append({"step": self.step, "sample": sample})
            if self.step % self._flush_steps == 0:
                metrics.flush()
        metrics.flush()
        self.beat()

    def save(self):
        """List a checkpoint of the present step."""
        entry = an_entry(self.step, self.claim.epoch, at=self.time.time, bytes=412_000_000)
        self.claim.commit(lambda head: head.with_checkpoint(entry))

    def beat(self, step=None):
        """Write a heartbeat of the present owner, who is at `step`; by default, at the last."""
        status = {"stage": "pretrain", "step": step or self.step, "steps": self.steps}
        status |= {"loss": round(self._loss(), 4), "tokens_per_second": self._speed}
        beat = {"at": self.time.time, "beat": 1, "status": status}
        key = self.state.key(f"owner/{self.claim.epoch}.json")
        self.state.store.write(key, json.dumps(beat).encode())

    def finish(self):
        """Save, and release the run with every stage done."""
        self.save()
        key = self.claim.head.checkpoints[0].key
        self.claim.finish_stage("pretrain", "d", {}, key)
        for stage in ("evaluate", "publish"):
            self.claim.finish_stage(stage, "d", {})
        self.claim.release()

    def _row(self):
        warm = min(1.0, 20 * self.step / self.steps)
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * self.step / self.steps))
        return {
            "step": self.step,
            "loss": self._loss() + self._chance.gauss(0, 0.06),
            "lr": self.lr * warm * cosine,
            "grad_norm": 0.4 + 3 / (1 + self.step),
            "mfu": 0.31,
            "memory": 21_474_836_480,
            "expert_load": [1.25, 1.5, 2.0 - 0.5 * self.step / self.steps],
            "tokens_per_second": self._speed * self._chance.uniform(0.94, 1.02),
            "rows": [BATCH * (self.step - 1), BATCH * self.step],
        }

    def _loss(self):
        return 2.4 + 5.0 * (1 + 40 * self.step / self.steps) ** -0.7 - 400 * (self.lr - 3e-4)
