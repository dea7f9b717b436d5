"""How much of two workers' time the stages use: 8 clips through `v2v` on tiny models.

The stages' own work is the time of their processes, imports and model loading included; the rest is Snakemake, the shell
and waiting for one another. The limit is 1: two workers busy all the time.

    python -m benchmarks.overhead [--quick] [--json FILE]
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import finish, median, parse_arguments, print_table
from stages.media.write import VideoWriter
from tests.tiny import vlm as tiny_vlm
from tests.tiny import wan as tiny_wan

ROOT = Path(__file__).parents[1]
WORKERS = 2
CLIPS = 8
OPTIONS = {"size": "96*64", "frame_num": 17, "steps": 8, "max_new_tokens": 24, "seed": 1, "source_first": True}


def write_project(folder: Path) -> None:
    """Tiny models, clips of different colours, and a config with one run over them."""
    tiny_wan.make(folder / "wan", "5b")
    tiny_vlm.make(folder / "vlm")
    for number in range(CLIPS):
        with VideoWriter(folder / f"clip{number}.mp4", 192, 128, 24) as video:
            for frame in range(24):
                video.write(np.full((128, 192, 3), (30 * number, 10 * frame, 128), np.uint8))
    config = {
        "models": {
            "wan": {"family": "wan", "variant": "5b", "path": "wan", "dtype": "float32", "sizes": ["96*64"]},
            "vlm": {"family": "vlm", "path": "vlm", "dtype": "float32"},
        },
        "runs": {
            "many": {
                "recipe": "v2v",
                "clips": [{"video": f"clip{number}.mp4"} for number in range(CLIPS)],
                "model": "wan",
                "captioner": "vlm",
                "options": OPTIONS,
            }
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))


def run_once() -> dict:
    """Wall seconds of a run, seconds of the stages' processes, and per stage: jobs, loads, seconds, seconds on items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        program = str(Path(sys.executable).with_name("snakemake"))
        command = [program, "--snakefile", str(ROOT / "Snakefile"), "--cores", str(WORKERS), "--quiet", "all"]
        start = time.monotonic()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
