"""What a run of many clips costs per clip: 250 and 1,000 clips of the toy family, which needs no weights and hardly works.

Snakemake's own seconds are those of its process; ours are those of the stages and their shells. Neither part may grow faster
than the number of clips.

    python -m benchmarks.many [--quick] [--json FILE]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import finish, parse_arguments, print_table
from examples import toy_family
from stages.media.shapes import dataset

WORKERS = 2
STAGES = 5  # of the toy recipe
# Snakemake as its command starts it; at the end it writes down what it and its children used.
MEASURED = """
import atexit, json, os, resource, sys
from snakemake.cli import main

def used(who):
    usage = resource.getrusage(who)
    return {"cpu s": usage.ru_utime + usage.ru_stime, "peak MB": usage.ru_maxrss / 1024}

def note(process=os.getpid()):
    if os.getpid() == process:
        with open("usage.json", "w") as file:
            json.dump([used(resource.RUSAGE_SELF), used(resource.RUSAGE_CHILDREN)], file)

atexit.register(note)
main()
"""


def write_project(folder: Path, clips: int) -> None:
    """Write the weights, the sources, and a config with one run in which no two clips have equal work."""
    toy_family.weights(folder / "grey")
    for _ in dataset.write(folder / "data", dataset.draw(clips, 32, 3, seed=0), 8):
        pass
    videos = sorted(f"data/videos/{path.name}" for path in folder.glob("data/videos/*.mp4"))
    rows = [
        {"id": f"clip{n:05d}", "video": video, "num_frames": 3 + n % 7, "brighter": n // 7} for n, video in enumerate(videos)
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"recipe": "toy", "clips": "clips.jsonl", "model": "grey", "scores": []}
    config = {"models": {"grey": {"family": "toy", "path": "grey"}}, "runs": {"many": run}}
    (folder / "config.yaml").write_text(json.dumps(config))


def run_once(clips: int) -> dict[str, float]:
    """Milliseconds of the CPU per clip, of Snakemake and of the stages, peak MB of both, and files and inodes per clip."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = toy_family.checkout(folder / "checkout")
        write_project(folder, clips)
        flags = ["--cores", str(WORKERS), "--resources", f"gpu={WORKERS}", "--quiet", "all"]
        command = [sys.executable, "-c", MEASURED, "--snakefile", str(root / "Snakefile"), *flags]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.run(command, cwd=folder, env=environment, **streams)
        if process.returncode or f"items: {STAGES * clips} made, 0 reused" not in process.stderr:
            raise SystemExit(f"the clips were not made, each by itself: {process.stderr[-1000:]}")
        snakemake, stages = json.loads((folder / "usage.json").read_text())
        left = [entry.stat() for place in ("results", ".snakemake") for entry in (folder / place).rglob("*")]
        return {
            "Snakemake ms": 1000 * snakemake["cpu s"] / clips,
            "stages ms": 1000 * stages["cpu s"] / clips,
            "Snakemake MB": snakemake["peak MB"],
            "stage MB": stages["peak MB"],
            "files": len(left) / clips,
            "inodes": len({status.st_ino for status in left}) / clips,
        }


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    few, many = (32, 128) if options.quick else (250, 1000)
    results = {clips: run_once(clips) for clips in (few, many)}
    keys = list(results[few])
    print_table(["clips", *keys], [[clips, *(result[key] for key in keys)] for clips, result in results.items()])
    per_clip = {clips: result["Snakemake ms"] + result["stages ms"] for clips, result in results.items()}
    own = " and ".join(f"{result['Snakemake ms']:.0f}" for result in results.values())
    line = (
        f"many: {per_clip[many] / per_clip[few]:.2f} (goal <= 1.10) CPU seconds per clip at {many} over {few} clips, "
        f"Snakemake's own {own} ms a clip (goal <= 60)"
    )
    finish(line, {"clips": {str(clips): result for clips, result in results.items()}}, options.json)


if __name__ == "__main__":
    main()
