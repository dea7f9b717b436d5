"""How much of two workers' time the stages use: 8 clips through `v2v` on the shipped models.

The stages' own work is the time of their processes, imports and model loading included; the rest is Snakemake, the shell
and waiting for one another. The limit is 1: two workers busy all the time.

    python -m benchmarks.overhead [--chain] [--quick] [--json FILE]
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import chain
from benchmarks.harness import finish, median, parse_arguments, print_table, snakemake
from benchmarks.shapes import declared_models
from stages.media.shapes import dataset

WORKERS = 2
CLIPS = 8


def write_project(folder: Path) -> None:
    """Write clips, and a config with one run over them on the shipped models."""
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
    """Wall seconds of a run, seconds of the stages' processes, and per stage: jobs, loads of each network, and seconds of
    the processes, of the loads and of the items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        start = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(snakemake(WORKERS), cwd=folder, check=True, **quiet)
        wall = time.monotonic() - start
        stages: dict[str, dict] = {}
        for log in folder.glob("results/many/steps/logs/**/*.log"):
            events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"event"')]
            for event in events:
                empty = {"jobs": 0, "loads": {}, "loading": 0.0, "process": 0.0, "items": 0.0}
                figures = stages.setdefault(event["stage"], empty)
                if event["event"] == "shard":
                    figures["jobs"] += 1
                    figures["process"] += event["process_seconds"]
                elif event["event"] == "load":
                    figures["loads"][event["component"]] = figures["loads"].get(event["component"], 0) + 1
                    figures["loading"] += event["seconds"]
                elif event["event"] == "item":
                    figures["items"] += event["seconds"]
    work = sum(figures["process"] for figures in stages.values())
    return {"wall": wall, "work": work, "share": work / (wall * WORKERS), "stages": stages}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0], chain="instead, a chain as one job against a process per stage")
    if options.chain:
        return chain.compare(options.quick, options.json)
    runs = [run_once() for _ in range(1 if options.quick else 3)]
    rows = [
        [stage, figures["jobs"], sum(figures["loads"].values()), *(figures[key] for key in ("process", "loading", "items"))]
        for stage, figures in runs[-1]["stages"].items()
    ]
    print_table(["stage", "jobs", "networks loaded", "process s", "of it loading s", "on items s"], rows)
    stages = [figures for run in runs for figures in run["stages"].values()]
    once = all(count <= figures["jobs"] for figures in stages for count in figures["loads"].values())
    share = median(runs, "share")
    line = (
        f"overhead: {share:.2f} of the workers' time is the stages' own (goal >= 0.6), wall {median(runs, 'wall'):.1f} s, "
    )
    line += "each network loaded once per shard" if once else "A NETWORK LOADED MORE THAN ONCE per shard"
    finish(line, {"runs": runs}, options.json)


if __name__ == "__main__":
    main()
