"""How much of two workers' time the stages use: 8 clips through `v2v` on the shipped models.

The stages' own work is the time of their processes, imports and model loading included; the rest is Snakemake, the shell
and waiting for one another. The limit is 1: two workers busy all the time.

    python -m benchmarks.overhead [--quick] [--json FILE]
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.harness import finish, median, parse_arguments, print_table, snakemake
from benchmarks.shapes import declared_models
from stages.media.shapes import dataset

WORKERS = 2
CLIPS = 8


def write_project(folder: Path) -> None:
    """Clips, and a config with one run over them on the shipped models."""
    for _ in dataset.write(folder / "data", dataset.draw(CLIPS, 128, 17, seed=0), 8):
        pass
    run = {
        "recipe": "v2v",
        "clips": {"videos": "data/videos"},
        "model": "shapes-wan-5b",
        "captioner": "shapes-internvl",
        "options": {"seed": 1, "source_first": True},
    }
    (folder / "config.yaml").write_text(json.dumps({"models": declared_models(), "runs": {"many": run}}))


def run_once() -> dict:
    """Wall seconds of a run, seconds of the stages' processes, and per stage: jobs, loads, seconds, seconds on items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        start = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(snakemake(WORKERS), cwd=folder, check=True, **quiet)
        wall = time.monotonic() - start
        stages: dict[str, dict[str, float]] = {}
        for log in folder.glob("results/many/steps/logs/**/*.log"):
            events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"event"')]
            for event in events:
                figures = stages.setdefault(event["stage"], {"jobs": 0, "loads": 0, "process": 0.0, "items": 0.0})
                if event["event"] == "shard":
                    figures["jobs"] += 1
                    figures["loads"] += event["model_loads"]
                    figures["process"] += event["process_seconds"]
                elif event["event"] == "item":
                    figures["items"] += event["seconds"]
    work = sum(figures["process"] for figures in stages.values())
    return {"wall": wall, "work": work, "share": work / (wall * WORKERS), "stages": stages}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    runs = [run_once() for _ in range(1 if options.quick else 3)]
    rows = [
        [stage, int(figures["jobs"]), int(figures["loads"]), figures["process"], figures["items"]]
        for stage, figures in runs[-1]["stages"].items()
    ]
    print_table(["stage", "jobs", "model loads", "process s", "of it on items s"], rows)
    once = all(figures["loads"] in (0, figures["jobs"]) for run in runs for figures in run["stages"].values())
    share = median(runs, "share")
    line = (
        f"overhead: {share:.2f} of the workers' time is the stages' own (goal >= 0.6), wall {median(runs, 'wall'):.1f} s, "
    )
    line += "one model load per shard" if once else "MORE THAN ONE model load per shard"
    finish(line, {"runs": runs}, options.json)


if __name__ == "__main__":
    main()
