"""Numbers that README and the pages quote are those of the committed results.

Each function has the results of a file in the words of a page. A number that is measured again, or
that was mistyped, fails here.
"""

import json
import math
import re
import statistics
from decimal import ROUND_HALF_UP, Decimal

import pytest

from tests.paths import REPOSITORY


def results(name):
    return json.loads((REPOSITORY / "benchmarks/results" / f"{name}.json").read_text())


def times(ratio):
    return f"{rounded(ratio, 2)}×"


def signed(value, digits=3):
    return f"{'+' if value >= 0 else ''}{rounded(value, digits)}".replace("-", "−")


def rounded(value, digits):
    """Return a decimal number, of which a half is rounded away from 0."""
    exact = Decimal(str(value)).quantize(Decimal(f"1e-{digits + 6}"))  # 100 · 0.0015 is 0.15
    return str(exact.quantize(Decimal(f"1e-{digits}"), ROUND_HALF_UP))


def error(values):
    """Return the standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def compared(part):
    return [one["result"] for one in results("comparisons")[part]["comparisons"]]


def readme():
    lost = results("checkpoint")["results"][0]["throughput_lost_every_2_min"]
    yield f"runs at {times(compared('training')[0])} the speed"
    yield f"with {times(compared('peak_memory')[0])} the memory"
    yield f"costs {100 * lost:.1f} % of the throughput"


def cards():
    for card in ("h200", "h100-80gb-hbm3"):
        for one in (row["measures"] for row in results(f"bench/nvidia-{card}")["rows"]):
            if "mfu" in one and one["compiled"]:
                speed, memory = one["tokens_per_second"], f" {one['measured_bytes'] / 2**30:.1f} |"
                speed = round(speed, -3 if speed > 1e5 else -2)
                quoted = f"{speed:,.0f}, {100 * one['mfu']:.1f} % |"
                yield f"| {quoted}" + memory * (card == "h200")


def performance():
    *training, plain, _ = results("comparisons")["training"]["comparisons"]
    for one, memory in zip(training, compared("peak_memory")):
        ours, theirs = (int(rounded(one[side], 0)) for side in ("ours", "theirs"))
        both = f"{times(one['result'])} the speed, {times(memory)} the memory"
        yield f"| {both} | {ours:,} and {theirs:,} tokens/s |"
    yield f"| plain PyTorch | {times(plain['result'])} the speed |"
    for part, *rows in (("decoding", (0, 1), (2, 3)), ("commands", (0, 1), (2,), (3, 4))):
        for row in rows:
            yield f"| {' and '.join(times(compared(part)[i]) for i in row)} the "
    pairs = [one["result"] for one in results("preferring")["comparisons"]]
    for found in (compared("fine_tuning"), compared("serve"), pairs[::2], pairs[1::2]):
        yield f"| {found[0]:.1f}× and {found[1]:.1f}× the "
    yield f"| {compared('serve')[3]:.2f} and 0.37 s |"
    for one in results("checkpoint")["results"]:
        yield f"{one['stall_seconds']:.2f} s, {100 * one['throughput_lost_every_2_min']:.1f} % |"
    yield f"| {times(results('startup')['ratio_of_medians'])} the time | 9.2 and 14.6 s |"
    between = results("startup")["stage_boundary_seconds"]["pretrain to first sft step"]
    yield f"fine-tuning | {between:.2f} s |"
    first_steps = results("restore")["first_step_seconds"]
    yield f"{first_steps['empty disk']:.1f} s, {rounded(first_steps['same disk'], 1)} s |"
    yield f"({times(results('pieces')['ratio']['median'])}) |"
    replay = results("replay")
    kept = sorted(100 * trace["kept"] for trace in replay["traces"].values())
    yield f"{kept[0]:.1f} %, {kept[1]:.1f} % and {kept[2]:.1f} % of the paid time"
    for deadline, mean in replay["mean"].items():
        late = f"{100 * mean['late']:.0f} %"
        yield f"| {deadline.replace('x', '×')} | {late} | {100 * mean['of_on_demand']:.1f} % |"


def models():
    families = results("families")["models"]
    for name in ("dense", "tachyon", "daisy"):
        yield f"| {families[name]['params']:,} | {families[name]['bits_per_byte']:.3f} |"


def pilon():
    for one in results("pilon")["models"].values():
        apart = one.get("from dense layers")
        words = f"{signed(apart['difference'])} (t = {apart['t']})" if apart else ""
        yield f"| {one['params']:,} | {one['bits_per_byte']:.3f} | {words}"
    for one in results("primitive_speed")["eager"]["models"].values():
        low, high = map(times, one["ratio_quartiles"])
        yield (
            f"| {one['params']:,} | {one['macs_per_token']:,} | {one['tokens_per_second']:,} | "
            f"{times(one['ratio'])} ({low[:-1]} to {high[:-1]}) |"
        )


def gates():
    for one in results("gates")["thresholds"]:
        more = f"{one['bits_per_byte']:.3f} ({signed(one['more_than_without'])})"
        yield f"| {one['skip_above']:.2f} | {100 * one['skipped']:.0f} % | {more} |"


def drafts():
    found = results("drafts")
    for text in ("prose", "code"):
        for sampling, words in (("greedy", "the likeliest tokens"), ("0.8", "temperature 0.8")):
            ratios = [
                times(one["ratio"])
                for one in found
                if (one.get("text"), one.get("sampling")) == (text, sampling)
            ]
            yield f"| {text}, {words} | {' | '.join(ratios)} |"


def slots():
    for arm, words in (
        ("slots", "window and slots (2 after each 8 tokens)"),
        ("blind", "window, and slots that see only themselves"),
        ("window", "window alone"),
    ):
        found = results("recall")["arms"][arm]
        share, sem = 100 * found["accuracy"], 100 * found["accuracy_sem"]
        yield f"| {words} | {share:.1f} % ± {sem:.1f} |"


def preferences():
    short = results("demo_prefer")["short"]
    both = zip(*(one["normalized"] for one in short))
    cells = (f"{100 * statistics.mean(v):.1f} % ± {100 * error(v):.1f}" for v in both)
    yield f"by the mean over its tokens | {' | '.join(cells)} |"
    right = [one["accuracy"] for one in short]
    yield f"| – | {100 * statistics.mean(right):.1f} % ± {100 * error(right):.1f} |"
    bits = [one["bits_per_byte"] for one in short]
    change = [two - one for one, two in bits]
    means = [statistics.mean(side) for side in zip(*bits)]
    more = f"{signed(statistics.mean(change))} ± {error(change):.3f}"
    yield f"| {means[0]:.3f} | {means[1]:.3f} ({more}) |"


def rewards():
    runs = results("demo_reinforce")["runs"]
    sampling, _, step = (one["result"] for one in results("rewarding")["comparisons"])
    for name in ("right", "any_right", "unfinished"):
        both = zip(*(one[name] for one in runs))
        yield " | ".join(f"{100 * statistics.mean(v):.1f} % ± {100 * error(v):.1f}" for v in both)
    more = [one["bits_per_byte"][1] - one["bits_per_byte"][0] for one in runs]
    yield f"{signed(statistics.mean(more))} ± {error(more):.3f}"
    yield f"{sampling:.1f} times as many tokens per second as transformers"
    yield f"a step of TRL takes {step:.1f} times as long as one of Pion"


def vocabulary():
    for one in results("vocabulary")["trained_on"]:
        yield " | ".join(rounded(size["bytes_per_token"], 2) for size in one["sizes"][:4])


def clean_data():
    text = results("clean")["text"]
    yield f"in {text['documents']:,} documents, all rules, a set of {text['items']:,} items"
    yield f"Cleaning read {text['mb_per_second']} MB/s"


def search():
    grids = results("halving")["summary"]
    for name in ("pion try", "all seeds: 17 %, 34 %, 69 %", "one seed: 100 %"):
        both = [grid["plans"][name] for grid in grids.values()]
        goods = ", ".join(f"{100 * plan['good_of_all_triples']:.0f} %" for plan in both)
        regrets = ", ".join(f"{plan['regret']:.4f}" for plan in both)
        yield f"| {both[0]['good']}, {both[1]['good']} | {goods} | {regrets} |"


def recipes():
    found = results("recipes")
    for other, words in (
        ("B muon, 720", "the older Muon"),
        ("N nanochat · 16, 680", "nanochat at 16 times its rates (five pairs of seeds)"),
        ("N nanochat · 32, 680", "at 32 times (four pairs)"),
    ):
        apart = lead_of_max(found["runs"], other)
        yield f"{statistics.mean(apart):.3f} ± {error(apart):.3f} better than {words}"
    gain = found["scaling"]["recipes"]["D max"]
    first, *_, last = gain["multiplier"]
    yield f"needs {first} times the FLOPs of Max at `xs`, and {last} times at `l`"
    low, high = map(signed, gain["slope_90"])
    yield f"slope {signed(gain['slope'])}; 90 %: {low} to {high}"
    pion = found["scaling"]["recipes"]["C pion 2"]
    first, *_, last = pion["multiplier"]
    yield f"from {first:.1f} to {last:.1f} (slope {signed(pion['slope'], 2)}"


def races():
    """Yield the rows of the arms that are worth telling, for every size at equal FLOPs."""
    of_arms = {}
    for row in results("recipes")["summary"]:
        if row["equal"] == "FLOPs":
            t = f", t = {row['t']:.1f}" if "real" in row else ""
            is_first = "difference" not in row
            value = f"{row['bits_per_byte']:.3f}" if is_first else f"{row['difference']:+.3f}"
            cell = f"{value} ({row['seeds']}{t})".replace("-", "−")
            of_arms.setdefault(row["arm"], {})[row["size"]] = cell
    for arm in ("A adamw 1e-3", "B muon", "C pion 2", "D max", "N nanochat · 16"):
        cells = of_arms[arm]
        yield f"| {arm} | {' | '.join(cells.get(size, '–') for size in ('xs', 's', 'm', 'l'))} |"


def lead_of_max(runs, other):
    """Return by how much Max is better than an arm and its steps, for each seed of both."""
    keys = ([f"l, {arm} steps, seed {seed}" for arm in ("D max, 921", other)] for seed in range(10))
    both = ([runs[key]["bits_per_byte"] for key in pair if key in runs] for pair in keys)
    return [pair[1] - pair[0] for pair in both if len(pair) == 2]


PAGES = [
    ("README.md", readme),
    ("docs/performance.md", cards),
    ("docs/performance.md", performance),
    ("docs/models.md", models),
    ("docs/pilon.md", pilon),
    ("docs/gates.md", gates),
    ("docs/drafts.md", drafts),
    ("docs/slots.md", slots),
    ("docs/prefer-measured.md", preferences),
    ("docs/reinforce.md", rewards),
    ("docs/sizing.md", vocabulary),
    ("docs/clean-data.md", clean_data),
    ("docs/halving.md", search),
    ("docs/races.md", recipes),
    ("docs/races.md", races),
]


@pytest.mark.parametrize(("page", "quoted"), PAGES, ids=[quoted.__name__ for _, quoted in PAGES])
def test_a_page_quotes_the_results(page, quoted):
    text = re.sub(r"\s+", " ", (REPOSITORY / page).read_text(encoding="utf-8"))
    assert [words for words in quoted() if words not in text] == []
