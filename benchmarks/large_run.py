"""Estimate what 20 billion tokens of a 1B-parameter model take on 1, 4 and 8 GPUs.

    uv run python -m benchmarks.large_run
    uv run python -m benchmarks.large_run --price A40=DOLLARS --price H100=DOLLARS

NOTHING RUNS ON A GPU. The result names, for each number, one of three kinds:

  * computed: follows from the model's shape and from how Pion trains it. Parameters, FLOPs, bytes
    of gradients, checkpoints and tokens.
  * estimate: depends on shares that are assumed. Seconds, and what follows from them. The seconds
    of a micro-batch are those of benchmarks/roofline.py.
  * assumed: speeds that `pion plan` and `pion replay` assume until a run has measured them.

No number here is measured. The hours at ASSUMED_MFU (pipeline/rent/plan/estimate.py) are what `pion
plan` says for a card that nobody has measured. They are more than three times the roofline's.

The model is the shape of pion-xl with 37 layers. pion-xl itself is the preset that is nearest to
1B parameters, and is estimated from the same counts. All layers are alike, so the operations are
counted with COUNTED_LAYERS, and each further layer adds their difference.

A card's gradients are summed once a step, while the backward pass of the last micro-batch still
computes. The estimates have both bounds: all of the sum is hidden that this
backward pass is long enough for, or none of it is. In a ring, a card sends and receives
2 × (n − 1) / n times its gradients (Patarasuk and Yuan 2009).

A price is dollars per hour of one GPU. Without --price, the result has GPU-hours and no dollars.
Writes benchmarks/results/large_run.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pretended import counted_by
from benchmarks.roofline import BANDWIDTH as MEMORY_BANDWIDTH
from benchmarks.roofline import REACHED_BANDWIDTH, REACHED_FLOPS, seconds
from benchmarks.step_counts import Step, count_step
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import cost_of, flops_per_token
from pion.train.hardware import gpu_flops
from pion.train.memory import Memory, Workload, predict_memory
from pion.train.micro_batch import choose_micro_batch
from pipeline.job import Checkpoint
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.speeds import ASSUMED_MFU
from pipeline.training.cadence import SaveCadence
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back
from tests.cuda_rehearsal.watch import Watch

STATE_BYTES, COPY_BYTES, WRITE_BYTES, UPLOAD_BYTES = 12, 4e9, 250e6, 100e6
RESULT = Path(__file__).parent / "results" / "large_run.json"
PRESET = "pion-xl"
# The number of layers by name. 37 layers have the parameters nearest to 1B that this shape allows.
LAYERS = {"pion-xl with 37 layers": 37, "pion-xl": 28}
COUNTED_LAYERS = (2, 4)
TOKENS = 20_000_000_000
SEQ_LEN = 2048
GLOBAL_BATCH = 256  # rows, as in jobs/pion-xl.yaml
CARDS = (1, 4, 8)
# Bytes of a token in PreprocessedMIXED, and tokens in one of its shards of 10,000 rows.
TOKEN_BYTES, SHARD_TOKENS = 4, 10_000 * 2048
# Autograd adds a micro-batch's gradients to those that are there: two fp32 reads and a write.
ADDING_BYTES = 12
# Of a micro-batch's time. A backward pass has two products for each one of the forward pass.
BACKWARD_SHARE = 2 / 3
# The share of a link's bandwidth that a ring reaches. An assumption, like those of the roofline.
REACHED_LINK = 0.75
NOTE = (
    "estimates: nothing ran on a GPU. Assumed shares: "
    f"{REACHED_FLOPS} of the FLOPs, {REACHED_BANDWIDTH} of the memory's bandwidth and "
    f"{REACHED_LINK} of the link's"
)


@dataclass(frozen=True)
class Link:
    """What connects the cards of a machine: bytes per second that a card can send."""

    name: str
    bandwidth: float
    source: str


LINKS = {
    # NVLink (56 GB/s each way) joins two A40s at most. A ring of four or more
    # also passes PCI Express, and is as fast as its slowest link.
    "A40": Link(
        "PCI Express 4.0 x16",
        31.5e9,
        "16 GT/s × 16 lanes × 128/130, one direction; the A40 has PCIe Gen4 x16",
    ),
    "H100": Link(
        "NVLink 4",
        450e9,
        "pages that quote NVIDIA's H100 data sheet (SXM): 900 GB/s in both directions together",
    ),
}


@dataclass(frozen=True)
class MicroBatch:
    """Estimated seconds of one micro-batch of a card, and of the update after a step."""

    rows: int
    products: float  # with attention
    memory: float  # of operations without products, and of the loss
    update: float
    launches: int

    @property
    def seconds(self) -> float:
        return self.products + self.memory


@dataclass(frozen=True)
class Estimate:
    """A run on `cards` cards. Seconds are of one step, and estimates."""

    cards: int
    rows_per_micro_batch: int
    micro_batches: int
    products_seconds: float
    memory_seconds: float
    update_seconds: float
    sum_seconds: float  # of the gradients over the link, if nothing hides it
    sum_seconds_not_hidden: float  # at least
    step_seconds: float
    mfu: float
    tokens_per_second: float
    gradient_gigabytes_sent_by_a_card: float
    link_gigabytes_per_second_that_hide_the_sum: float
    shard_megabytes_per_second: float
    save_interval_seconds: float
    lost_to_saves: float
    hours: float
    hours_if_nothing_is_hidden: float
    gpu_hours: float
    hours_at_assumed_mfu: float
    gpu_hours_at_assumed_mfu: float
    dollars: float | None = None
    dollars_at_assumed_mfu: float | None = None


# ---------------------------------------------------------------- counts


def config_of(layers: int) -> ModelConfig:
    """Return the shape of PRESET with this many layers."""
    return ModelConfig.preset(PRESET, n_layers=layers)


def workload(config: ModelConfig, card: str) -> Workload:
    """Return what a card trains: bf16 and AdamW, with compiled blocks."""
    capability = GPU_TYPES[card].capability
    return Workload(
        config, SEQ_LEN, "bfloat16", "adamw", "cuda", False, compile=True, capability=capability
    )


def micro_batch_rows(config: ModelConfig, card: str) -> int:
    """Return the rows of a micro-batch that Pion chooses on the largest number of cards."""
    rows, recompute = choose_micro_batch(
        workload(config, card),
        rows_per_rank=GLOBAL_BATCH // max(CARDS),
        memory_bytes=GPU_TYPES[card].memory,
    )
    assert not recompute
    return rows


def count(watch: Watch) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by card and by counted layers, seconds by part and launches of a micro-batch."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for card in LINKS:
        rows = micro_batch_rows(config_of(max(LAYERS.values())), card)
        for layers in COUNTED_LAYERS:
            step = Step(config_of(layers), rows, SEQ_LEN, card, compiled=True)
            own: dict[str, Any] = {"rows": rows, "launches": 0, "products": 0.0}
            for operation in count_step(watch, step):
                part = "products" if operation.flops else operation.part
                own[part] = own.get(part, 0.0) + seconds(operation, card)
                own["launches"] += operation.launches
            found.setdefault(card, {})[str(layers)] = own
    return found


def with_layers(counted: dict[str, dict[str, Any]], layers: int) -> MicroBatch:
    """Return the micro-batch of a model with `layers` layers, from counts of fewer layers."""
    few, more = COUNTED_LAYERS
    first, second = counted[str(few)], counted[str(more)]

    def of(part: str) -> float:
        slope = (second[part] - first[part]) / (more - few)
        return float(first[part] + slope * (layers - few))

    update = of("optimizer")
    others = set(first) - {"rows", "launches", "products", "optimizer"}
    memory = sum(of(part) for part in others)
    return MicroBatch(first["rows"], of("products"), memory, update, round(of("launches")))


# ---------------------------------------------------------------- estimates


def run_estimate(config: ModelConfig, card: str, cards: int, micro: MicroBatch) -> Estimate:
    """Return what the run takes on `cards` cards."""
    peak = gpu_flops(GPU_TYPES[card].cuda, "bfloat16")
    assert peak is not None
    params = cost_of(config).all_params
    micro_batches = GLOBAL_BATCH // cards // micro.rows
    adding = ADDING_BYTES * params / (MEMORY_BANDWIDTH[card] * REACHED_BANDWIDTH)
    sent = 4 * params * 2 * (cards - 1) / cards
    summing = sent / (LINKS[card].bandwidth * REACHED_LINK)
    shown = max(0.0, summing - BACKWARD_SHARE * micro.seconds)
    products = micro_batches * micro.products
    memory = micro_batches * micro.memory + (micro_batches - 1) * adding
    alone = products + memory + micro.update
    tokens = GLOBAL_BATCH * SEQ_LEN
    steps = math.ceil(TOKENS / tokens)
    flops = tokens * flops_per_token(config, SEQ_LEN)
    interval, lost = saving(params)
    hours = [steps * (alone + extra) * (1 + lost) / 3600 for extra in (shown, summing)]
    assumed = TOKENS * flops_per_token(config, SEQ_LEN) / (cards * peak * ASSUMED_MFU) / 3600
    speed = tokens / (alone + shown)
    return Estimate(
        cards=cards,
        rows_per_micro_batch=micro.rows,
        micro_batches=micro_batches,
        products_seconds=round(products, 4),
        memory_seconds=round(memory, 4),
        update_seconds=round(micro.update, 4),
        sum_seconds=round(summing, 4),
        sum_seconds_not_hidden=round(shown, 4),
        step_seconds=round(alone + shown, 4),
        mfu=round(flops / (alone + shown) / (cards * peak), 3),
        tokens_per_second=round(speed),
        gradient_gigabytes_sent_by_a_card=round(sent / 1e9, 2),
        link_gigabytes_per_second_that_hide_the_sum=round(
            sent / (BACKWARD_SHARE * micro.seconds) / 1e9, 1
        ),
        shard_megabytes_per_second=round(speed * TOKEN_BYTES / 1e6, 2),
        save_interval_seconds=round(interval, 1),
        lost_to_saves=round(lost, 4),
        hours=round(hours[0], 1),
        hours_if_nothing_is_hidden=round(hours[1], 1),
        gpu_hours=round(cards * hours[0], 1),
        hours_at_assumed_mfu=round(assumed, 1),
        gpu_hours_at_assumed_mfu=round(cards * assumed, 1),
    )


def saving(params: int) -> tuple[float, float]:
    """Return the seconds between two saves, and what a save stops as a share of them."""
    state = STATE_BYTES * params
    stall = state / COPY_BYTES
    write = state / WRITE_BYTES + state / UPLOAD_BYTES
    every = 3600 * Checkpoint().preemption_hours
    cadence = SaveCadence(None, None, every, last_save=0.0)
    cadence.saved(0.0, stall, write)
    return cadence.interval, stall / cadence.interval


def priced(estimate: Estimate, price: float | None) -> dict[str, Any]:
    """Return the estimate with its dollars, if one GPU's price is known."""
    found = asdict(estimate)
    if price is not None:
        found["dollars"] = round(price * estimate.gpu_hours, 2)
        found["dollars_at_assumed_mfu"] = round(price * estimate.gpu_hours_at_assumed_mfu, 2)
    return found


def model_report(layers: int, counted: dict[str, Any], prices: dict[str, float]) -> dict[str, Any]:
    """Return what is computed of a model, and its estimates by card."""
    config = config_of(layers)
    cost = cost_of(config)
    state = STATE_BYTES * cost.all_params
    cards: dict[str, Any] = {}
    for card in LINKS:
        micro = with_layers(counted[card], layers)
        memory = predict_memory(workload(config, card), micro_batch=micro.rows, recompute=False)
        cards[card] = {
            "estimated_milliseconds_of_a_micro_batch": round(1e3 * micro.seconds, 1),
            "launches_of_a_micro_batch_and_update": micro.launches,
            "computed_memory_gib": memory_report(memory),
            "runs": [
                priced(run_estimate(config, card, number, micro), prices.get(card))
                for number in CARDS
            ],
        }
    return {
        "computed": {
            "layers": layers,
            "params": cost.all_params,
            "gigaflops_per_token": round(flops_per_token(config, SEQ_LEN) / 1e9, 3),
            "exaflops_of_the_run": round(TOKENS * flops_per_token(config, SEQ_LEN) / 1e18, 1),
            "steps": math.ceil(TOKENS / (GLOBAL_BATCH * SEQ_LEN)),
            "gradient_gigabytes": round(4 * cost.all_params / 1e9, 2),
            "checkpoint_gigabytes": round(state / 1e9, 2),
        },
        "assumed_seconds_of_a_save": {
            "copy, while training waits": round(state / COPY_BYTES, 1),
            "write": round(state / WRITE_BYTES, 1),
            "upload": round(state / UPLOAD_BYTES, 1),
        },
        "cards": cards,
    }


def memory_report(memory: Memory) -> dict[str, float]:
    """Return parts of the predicted memory of a card, in GiB."""
    parts = {
        "weights and gradients": memory.weights,
        "moments of AdamW": memory.optimizer,
        "activations": memory.activations,
        "peak": memory.total,
    }
    return {name: round(size / 2**30, 2) for name, size in parts.items()}


# ---------------------------------------------------------------- the command


def price_of(text: str) -> tuple[str, float]:
    """Return the card and the dollars of a --price. Raises ArgumentTypeError for a mistake."""
    found = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)", text)
    if found is None or found[1] not in LINKS:
        raise argparse.ArgumentTypeError(f"{text!r} is no GPU=DOLLARS for {' or '.join(LINKS)}")
    return found[1], float(found[2])


def print_tables(models: dict[str, Any]) -> None:
    """Print the estimates, one line for each number of cards."""
    print(NOTE)
    for name, model in models.items():
        print(
            f"\n{name}: {model['computed']}\nsaves, assumed: {model['assumed_seconds_of_a_save']}"
        )
        print("seconds of a step (estimates)")
        print(
            "           rows products memory update  sum (not hidden)  est. MFU   tokens/s"
            f"   hours  GPU-hours  at {ASSUMED_MFU:.0%} MFU       $"
        )
        for card, found in model["cards"].items():
            for run in found["runs"]:
                dollars = "?" if run["dollars"] is None else f"{run['dollars']:,.0f}"
                print(
                    f"{run['cards']} × {card:5} {run['micro_batches']:3}×"
                    f"{run['rows_per_micro_batch']} {run['products_seconds']:8.2f} "
                    f"{run['memory_seconds']:6.2f} {run['update_seconds']:6.3f} "
                    f"{run['sum_seconds']:6.3f} ({run['sum_seconds_not_hidden']:.3f}) "
                    f"{run['mfu']:12.1%} {run['tokens_per_second']:10,} {run['hours']:7,.1f} "
                    f"{run['gpu_hours']:10,.1f} {run['gpu_hours_at_assumed_mfu']:12,.1f} "
                    f"{dollars:>7}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--price", action="append", type=price_of, default=[], metavar="GPU=$")
    parser.add_argument("--here", action="store_true", help="count in this process")
    options = parser.parse_args()
    if options.here:
        with pretended_card() as watch:
            hand_back(count(watch))
        return
    counted = counted_by("benchmarks.large_run", ["--here"])
    prices = dict(options.price)
    models = {name: model_report(layers, counted, prices) for name, layers in LAYERS.items()}
    report = {
        "note": NOTE,
        "assumed_mfu": ASSUMED_MFU,
        "tokens": TOKENS,
        "global_batch": f"{GLOBAL_BATCH} rows of {SEQ_LEN} tokens, bf16, AdamW, compiled blocks",
        "data": {
            "gigabytes": TOKENS * TOKEN_BYTES / 1e9,
            "shards of PreprocessedMIXED": math.ceil(TOKENS / SHARD_TOKENS),
        },
        "links": {card: asdict(link) for card, link in LINKS.items()},
        "dollars_per_gpu_hour": prices,
        "models": models,
    }
    RESULT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print_tables(models)


if __name__ == "__main__":
    main()
