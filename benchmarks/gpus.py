"""Use of eight simulated GPUs by 64 clips whose stages only wait: are all GPUs busy all the time?

The limit is 1: the seconds that the stages need a GPU for their items, divided by eight. The rest is Snakemake, the start of
the stages, and GPUs that wait for their next job. A device that two jobs held at the same time is reported.

    python -m benchmarks.gpus [--quick] [--json FILE]
"""

import json
import os
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import finish, parse_arguments, print_table, snakemake
from examples import toy_family
from stages.media.shapes import dataset

GPUS, CLIPS = 8, 64
SECONDS = 20.0  # time of a stage for a clip, less than any model takes on a GPU
STAGES = 3  # number of stages that hold a GPU


def run_once(folder: Path, clips: int, seconds: float) -> dict:
    """Wall seconds of a run, and the jobs and seconds in which each device was held."""
    for _ in dataset.write(folder / "data", dataset.draw(1, 32, 5, seed=0), 8):
        pass
    checkout = toy_family.checkout(folder / "checkout")
    source = next((folder / "data/videos").iterdir())
    equal = {"video": str(source), "size": "32*32"}
    rows = [
        {"id": f"clip{number:02d}", "brighter": number, **equal} for number in range(clips)
    ]  # otherwise the store would reuse one result
    config = {
        "models": {"grey": {"family": "toy", "path": str(toy_family.weights(folder / "grey"))}},
        "runs": {"many": {"recipe": "toy", "clips": rows, "model": "grey", "scores": [], "options": {"seconds": seconds}}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    environment = {"KINEMAKE_GPUS": str(GPUS), "KINEMAKE_GPU_LOCKS": str(folder / "locks"), "PYTHONPATH": str(checkout)}
    command = snakemake(GPUS, "--resources", f"gpu={GPUS}", root=checkout)
    start = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, **quiet)
    return {"wall": time.monotonic() - start, **read_spans(folder / "results/many/steps/logs")}


def read_spans(logs: Path) -> dict:
    """Jobs and seconds from a job's lease to its end, by device, and how often two jobs held a device at the same time."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for log in logs.glob("many.*.log"):
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"event"')]
        for lease in (event for event in events if event["event"] == "lease"):
            spans.setdefault(lease["devices"][0], []).append((lease["time"], events[-1]["time"]))
    shared = sum(after[0] < before[1] for pairs in spans.values() for before, after in pairwise(sorted(pairs)))
    seconds = {device: sum(end - start for start, end in pairs) for device, pairs in sorted(spans.items())}
    return {"jobs": {device: len(pairs) for device, pairs in spans.items()}, "held": seconds, "shared": shared}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    clips, seconds = (2 * GPUS, SECONDS / 2) if options.quick else (CLIPS, SECONDS)
    ideal = clips / GPUS * STAGES * seconds
    with tempfile.TemporaryDirectory() as folder:
        run = run_once(Path(folder), clips, seconds)
    print_table(["GPU", "jobs", "s held"], [[name, run["jobs"][name], seconds] for name, seconds in run["held"].items()])
    busy = ideal / run["wall"]
    line = f"gpus: {busy:.2f} of the time of {len(run['held'])} GPUs is the stages' work (goal >= 0.85), "
    line += f"{clips} clips in {run['wall']:.0f} s, ideal {ideal:.0f} s, {run['shared']} devices shared (goal 0)"
    finish(line, {**run, "ideal": ideal, "busy": busy}, options.json)


if __name__ == "__main__":
    main()
