"""Chains of twelve links in shapes world, by each way in which the shipped models hand over: what stays, and what moves.

Beside them the true films, as they are and through the VAE of shapes-helios, a link at a time: what each figure is without a
model. The optical flow takes the noise that a VAE leaves on a plain background for motion, so the goal is set for the speed
of the shape.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from benchmarks.harness import ROOT, command, finish, parse_arguments, print_table, snakemake
from benchmarks.shapes import FPS, FRAMES, OPTIONS, make_sources
from examples.shipped import declared_models
from stages.media.shapes import score
from stages.media.shapes.dataset import Source
from stages.media.shapes.world import render
from stages.media.write import VideoWriter
from stages.score_shapes import score_run

LINKS, CLIPS, QUICK_CLIPS = 12, 6, 3
SIDE = 64  # of the films of shapes-helios, and of the true ones beside them
RUNS = {  # model and options
    "5b by frame": ("shapes-wan-5b", {}),
    "5b-tail by frames": ("shapes-wan-5b-tail", {}),
    "5b-tail by latents": ("shapes-wan-5b-tail", {"handover": "latents"}),
    "helios by frames": ("shapes-helios", {}),
    "helios by latents": ("shapes-helios", {"handover": "latents"}),
}
COLUMNS = {  # of the table, by the figure
    "color": "colour in every link",
    "shape": "shape",
    "direction": "direction",
    "drift": "colour drift per link",
    "speed": "speed after / before a seam",
    "flow": "optical flow after / before",
}
GOAL = (0.9, 1.1)  # of the speed after a seam, as a share of that before it


def name_of(run: str) -> str:
    return run.replace(" ", "-")


def config(sources: dict) -> dict:
    """A config with a run for each way. The caption of the source is the prompt of all links."""
    clips = [{"id": Path(path).stem, "video": path, "prompt": source.caption} for path, source in sources.items()]
    run = {"recipe": "chain", "clips": clips, "scores": ["seams", "drift"]}
    models = declared_models()
    runs = {
        name_of(name): {**run, "model": model, "options": {**OPTIONS, "links": LINKS, **options}}
        for name, (model, options) in RUNS.items()
        if model in models
    }
    return {"models": models, "runs": runs}


def figures(folder: Path) -> dict[str, float]:
    """The figures of a finished run."""
    summary = score_run(folder)["summary"]["seen"]
    scores = [json.loads(path.read_text())["fields"] for path in sorted(folder.glob("*.scores.json"))]
    return content(summary) | measures(scores)


def true_figures(folder: Path, sources: dict[str, Source], through: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The figures of the true films, of which each link went `through` something, uint8 [T, H, W, 3] to the same."""
    folder.mkdir(exist_ok=True)
    rows, scores = [], []
    starts = [FRAMES * link for link in range(1, LINKS + 1)]
    seams = [word for start in starts[:-1] for word in ("--seams", start)]
    for path, source in sources.items():
        links = [through(render(source.scene, FRAMES, SIDE, SIDE, start)) for start in starts]
        film = folder / f"{Path(path).stem}.mkv"
        with VideoWriter(film, SIDE, SIDE, FPS, codec="lossless") as video:
            for frame in np.concatenate(links):
                video.write(frame)
        output = film.with_suffix(".json")
        arguments = ("--scores", "seams", "--scores", "drift", *seams, "-o", output)
        subprocess.run(command("score", film, *arguments), check=True, capture_output=True)
        scores.append(json.loads(output.read_text())["fields"])
        rows.append(score.Row(film.stem, False, figures=score.chain(links, source.scene, FRAMES, LINKS, repeated=0)))
    return content(score.summarize(rows)["seen"]) | measures(scores)


@cache
def vae_of_helios() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(ROOT / "models/shapes-helios/vae", torch_dtype=torch.float32)


@torch.no_grad()
def through_vae(clip: np.ndarray) -> np.ndarray:
    """A clip, uint8 [T, H, W, 3], encoded and decoded by the VAE of shapes-helios."""
    vae = vae_of_helios()
    video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample[0]
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def content(summary: dict) -> dict[str, float]:
    """What the oracle of shapes world reads."""
    right = {name: summary[f"{name}_in_every_link"] for name in ("color", "shape", "direction")}
    return {**right, "speed": summary["seam_speed"]}


def measures(scores: list[dict]) -> dict[str, float]:
    """What `score` measures of any films."""
    seams = [row["motion_ratio"] for one in scores for row in one["details"]["seams"] if row["motion_ratio"] is not None]
    return {
        "drift": statistics.fmean(one["figures"]["drift.colour"] / (LINKS - 1) for one in scores),
        "flow": statistics.median(seams) if seams else float("nan"),
    }


def main() -> None:
    options = parse_arguments(__doc__)
    clips = QUICK_CLIPS if options.quick else CLIPS
    folder = ROOT / "benchmarks" / "out" / f"handover-{clips}"
    sources = {path: source for path, source in make_sources(folder, clips).items() if path.startswith("seen")}
    runs = config(sources)
    (folder / "config.yaml").write_text(json.dumps(runs))
    with chdir(folder):
        subprocess.run(snakemake(2, "--keep-going", "--rerun-incomplete"), stdout=sys.stderr)
    found = {name: figures(folder / "results" / name_of(name)) for name in RUNS if name_of(name) in runs["runs"]}
    low, high = GOAL
    reached = sum(low <= row["speed"] <= high for row in found.values())
    true = {
        "true films": true_figures(folder / "true", sources, lambda clip: clip),
        "true films through a VAE": true_figures(folder / "true-vae", sources, through_vae),
    }
    rows = {**found, **true}
    print_table(["chain", *COLUMNS.values()], [[name, *(row[figure] for figure in COLUMNS)] for name, row in rows.items()])
    finish(f"handover: speed kept at the seams of {reached} of {len(found)} ways (goal: all)", rows, options.json)


if __name__ == "__main__":
    main()
