"""What the step caches leave out and what they cost: the shipped 5B on clips of shapes world, against no cache.

Per setting: the share of the blocks that computed, the PSNR of the films against those without a cache, and the scores of
the oracle. The ratios of magcache are those that `step_cache: calibrate` logs for the first clip.

    python -m benchmarks.step_cache [--quick] [--json FILE]
"""

import json
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.harness import finish, parse_arguments, print_table, snakemake
from benchmarks.shapes import make_sources
from examples.shipped import declared_models
from stages.media.read import frames
from stages.media.shapes.score import psnr
from stages.score_shapes import score_run

MODEL, CLIPS, QUICK_CLIPS = "shapes-wan-5b", 24, 6
OPTIONS = {"seed": 42, "lossless": True}
SETTINGS = {
    "none": {},
    **{f"first_block {n}": {"step_cache": "first_block", "cache_threshold": n} for n in (0.05, 0.1, 0.2)},
    **{f"magcache {n}": {"step_cache": "magcache", "cache_threshold": n} for n in (0.03, 0.06, 0.12)},
    **{f"taylorseer {n}": {"step_cache": "taylorseer", "cache_interval": n} for n in (2, 3, 4)},
}
BLOCKS = json.loads((Path(declared_models()[MODEL]["path"]) / "transformer/config.json").read_text())["num_layers"]
SCORES = ("color", "shape", "direction", "gain_db")


def make_runs(folder: Path, clips: list[dict], settings: dict) -> None:
    """Make a run of the same clips with each setting."""
    run = {"recipe": "v2v", "fuse": True, "model": MODEL, "clips": clips}
    runs = {name: {**run, "options": {**OPTIONS, **setting}} for name, setting in settings.items()}
    (folder / "config.yaml").write_text(json.dumps({"models": declared_models(), "runs": runs}))
    with chdir(folder):
        subprocess.run(snakemake(2), stdout=sys.stderr, check=True)


def events(folder: Path, run: str, name: str) -> list[dict]:
    """The events of a name in the logs of a run."""
    lines = [
        line for path in (folder / "results" / run / "steps/logs").glob("*.log") for line in path.read_text().splitlines()
    ]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def computed(folder: Path, run: str, cache: str) -> float:
    """Share of the blocks of all passes that computed. first_block computes one block of the passes that it leaves out."""
    counts = events(folder, run, "step_cache")
    if not counts:
        return 1.0
    left = sum(event["left_out"] for event in counts) / sum(event["passes"] for event in counts)
    return 1 - left * (BLOCKS - (cache == "first_block")) / BLOCKS


def film(folder: Path, run: str, clip: str) -> np.ndarray:
    return np.stack([frame.rgb for frame in frames(folder / "results" / run / f"{clip}.mp4")])


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_sources(folder, QUICK_CLIPS if arguments.quick else CLIPS)
        clips = [
            {"id": path.split("/")[-1].removesuffix(".mp4"), "video": path, "prompt": source.caption}
            for path, source in sources.items()
            if path.startswith("seen")
        ]
        make_runs(folder, clips[:1], {"ratios": {"step_cache": "calibrate"}})
        (ratios,) = events(folder, "ratios", "mag_ratios")
        settings = {run: dict(setting) for run, setting in SETTINGS.items()}
        for setting in settings.values():
            if setting.get("step_cache") == "magcache":
                setting["mag_ratios"] = ratios["ratios"]
        names = {run: run.replace(" ", "-") for run in settings}
        make_runs(folder, clips, {names[run]: setting for run, setting in settings.items()})
        figures = {}
        for run, setting in settings.items():
            near = [psnr(film(folder, names[run], clip["id"]), film(folder, "none", clip["id"])) for clip in clips]
            scores = score_run(folder / "results" / names[run])["summary"]["seen"]
            share = computed(folder, names[run], setting.get("step_cache", ""))
            figures[run] = {"blocks": share, "psnr_db": fmean(near), **{score: scores[score] for score in SCORES}}
    print_table(["cache", "blocks", "PSNR dB", *SCORES], [[run, *values.values()] for run, values in figures.items()])
    best = min(values["blocks"] for values in figures.values() if values["psnr_db"] >= 40)
    finish(f"step_cache: {best:.2f} of the blocks at 40 dB or more, {len(clips)} clips", figures, arguments.json)


if __name__ == "__main__":
    main()
