"""A price list for SkyPilot. All prices are invented."""

import csv
from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """Dollars per hour of one GPU; None: not offered that way."""

    spot: float | None
    on_demand: float | None


GPU_MEMORY_GIB = {
    "A10": 24,
    "A10G": 24,
    "A30": 24,
    "A40": 48,
    "A100": 40,
    "L4": 24,
    "L40S": 48,
    "RTX3090": 24,
    "RTX4090": 24,
    "RTXA2000": 6,
    "RTXA4000": 16,
    "RTXA4500": 20,
    "RTXA5000": 24,
    "RTXA6000": 48,
    "A100-80GB": 80,
    "H100": 80,
}

# Spot is cheapest on the A40, on demand on the RTXA4000.
PRICES = {
    "A40": Price(0.20, 0.40),
    "L4": Price(0.32, 0.43),
    "L40S": Price(0.45, 0.86),
    "RTX3090": Price(0.28, 0.46),
    "RTX4090": Price(0.40, 0.69),
    "RTXA4000": Price(0.22, 0.25),
    "RTXA4500": Price(0.23, 0.26),
    "RTXA5000": Price(0.24, 0.27),
    "RTXA6000": Price(0.30, 0.49),
}

# Machines without a GPU: vCPUs and GiB of memory, by name.
CPU_MACHINES = {"cpu3c-4-8": (4, 8), "cpu3c-8-16": (8, 16), "cpu3g-8-32": (8, 32)}

_COLUMNS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Region,SpotPrice,Price,"
    "AvailabilityZone"
)


def write_catalog(home, prices=PRICES, regions=None, cloud="RunPod", cpu_prices=None):
    """Write the price list of `cloud` where SkyPilot with the home folder `home` reads it.

    `regions` maps each region to its zone. Every GPU is offered in all regions, one per machine.
    `cpu_prices` are those of machines without a GPU, on demand.
    A running API server keeps its list.
    """
    folder = home / ".sky" / "catalogs" / "v8"
    for name in (cloud.lower(), "common"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / cloud.lower() / "vms.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS.split(","))
        for gpu, price in prices.items():
            mib = GPU_MEMORY_GIB[gpu] * 1024
            memory = {"Name": gpu, "Manufacturer": "NVIDIA", "Count": 1.0}
            info = {"Gpus": [memory | {"MemoryInfo": {"SizeInMiB": mib}}]}
            info["TotalGpuMemoryInMiB"] = mib
            for region, zone in (regions or {"CA": "CA-MTL-1"}).items():
                spot = "" if price.spot is None else price.spot
                on_demand = "" if price.on_demand is None else price.on_demand
                kind = f"1x_{gpu}_SECURE"
                table.writerow([kind, gpu, 1.0, 8.0, 48.0, info, region, spot, on_demand, zone])
        for kind, dollars in (cpu_prices or {}).items():
            cpus, gib = CPU_MACHINES[kind]
            for region, zone in (regions or {"CA": "CA-MTL-1"}).items():
                row = [kind, "", "", cpus, gib, "", region, "", dollars, zone]
                table.writerow(row)
    with (folder / "common" / "accelerators.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["AcceleratorName", "Clouds"])
        table.writerows([gpu, [cloud]] for gpu in prices)
