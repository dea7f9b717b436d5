"""Flicker of FRESCO films, against the same networks on each frame alone, and the memory of the feature optimisation.

The first 32 frames of car-turn.mp4 (480x480, from the folder videos of $KINEMAKE_MEDIA, by default ../shared/media beside
the project), scaled to 256x256, go through snakemake with a tiny Stable Diffusion and ControlNets of random weights, as soft
edges, hard edges and depth: a keyframe every 5 frames, and 20 steps of which 5 are skipped. A frame alone has no guidance by
neighbours and no optimisation. Flicker is the mean difference of neighbouring frames along the flow of the source, in
levels, where that flow is reliable. The limit is the flicker of the source.

The shipped model is measured in the same way on clips of shapes world, where formulas tell which pixels should change from
frame to frame, and how near a film is to the target look.

The optimisation is that of the last up block of Stable Diffusion 1.5 for 8 keyframes of 896x512, in a process of its own,
compared with the size of one copy of the Gram matrices of both halves. It keeps those of the source where memory is free;
its memory and its CPU seconds are given with them and without, the goal is that without.

    python -m benchmarks.fresco [--quick] [--json FILE]
"""

import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.harness import MEDIA, finish, in_fresh_process, parse_arguments, print_table, snakemake
from benchmarks.shapes import declared_models
from stages.families.fresco.features import Motion, Reference, optimise, unit_tokens
from stages.families.fresco.options import CONTROLS
from stages.media.flow import correspondence, is_consistent, sample
from stages.media.read import frames
from stages.media.shapes import dataset, filmed
from stages.media.shapes.world import render
from stages.media.write import VideoWriter
from tests.tiny import sd

CLIP, FRAMES, SIDE = MEDIA / "videos/car-turn.mp4", 32, 256
OPTIONS = {"prompt": "a toy car turns in the snow", "seed": 1, "size": f"{SIDE}*{SIDE}", "crf": 4}
SHIPPED, SHAPES_SIDE, SHAPES_FRAMES = "shapes-fresco", 128, 17
BATCH, CHANNELS, TOKENS = 8, 640, (64, 112)  # of 896x512 in the last up block
GOAL, PEAK_GOAL = 1.0, 3.0  # times the flicker of frames alone, GB


def measure(kept: bool) -> dict:
    """Peak memory in bytes that two steps of the optimisation add to its input, and CPU seconds of a step, in which the Gram
    matrices of the source are kept or computed."""
    motion = Motion(*(torch.zeros(BATCH, 2, 512, 896),) * 2, *(torch.zeros(BATCH, 512, 896),) * 2)
    features = torch.randn(2 * BATCH, CHANNELS, *TOKENS)
    tokens = unit_tokens(features)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reference = Reference(tokens, 1e12 if kept else 0)
    start = time.process_time()
    optimise(features, reference, motion, iterations=2)
    seconds = (time.process_time() - start) / 2
    return {"peak": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), "seconds": seconds}


def flicker(produced: Sequence[np.ndarray], source_frames: Sequence[np.ndarray]) -> float:
    differences = []
    for (before, after), (first, second) in zip(pairwise(produced), pairwise(source_frames)):
        forward, backward = correspondence(second, first), correspondence(first, second)
        differences.append(cv2.absdiff(sample(before, forward), after)[is_consistent(forward, backward)].mean())
    return float(np.mean(differences))


def write_clips(folder: Path, images: Sequence[np.ndarray]) -> None:
    """Write a clip of square images, and a clip of each image alone."""
    folder.mkdir(exist_ok=True)
    clips = {"whole": images, **{f"{number:02d}": [rgb] for number, rgb in enumerate(images)}}
    for name, part in clips.items():
        side = len(part[0])
        with VideoWriter(folder / f"{name}.mp4", side, side, 25, crf=4) as video:
            for rgb in part:
                video.write(rgb)


def frames_of(*videos: Path) -> list[np.ndarray]:
    return [frame.rgb for video in videos for frame in frames(video)]


def run_snakemake(folder: Path, models: dict, runs: dict) -> None:
    (folder / "config.yaml").write_text(json.dumps({"models": models, "runs": runs}))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(snakemake(2), cwd=folder, check=True, **quiet)


def films(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Flicker of the film, of frames alone and of the source, by control type."""
    sd.make(folder / "sd")
    images = [cv2.resize(frame.rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in islice(frames(CLIP), count)]
    write_clips(folder, images)
    source_frames = frames_of(folder / "whole.mp4")
    names = {"film": ["whole"], "alone": [f"{number:02d}" for number in range(count)]}
    runs = {
        f"{kind}-{control}": {
            "recipe": "fresco",
            "clips": [{"id": name, "video": f"{name}.mp4"} for name in clips],
            "model": "sd",
            "options": {**OPTIONS, "controlnet_type": control, **({"feature_iterations": 0} if kind == "alone" else {})},
        }
        for control in CONTROLS
        for kind, clips in names.items()
    }
    run_snakemake(folder, {"sd": {"family": "fresco", "path": "sd", "dtype": "float32"}}, runs)
    results = {}
    for control in CONTROLS:
        produced = {
            kind: frames_of(*(folder / f"results/{kind}-{control}/{name}.mp4" for name in clips))
            for kind, clips in names.items()
        }
        assert len(produced["film"]) == count
        results[control] = {kind: flicker(images, source_frames) for kind, images in produced.items()}
        results[control]["source"] = flicker(source_frames, source_frames)
    return results


def shapes(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Flicker in levels and nearness of the look (0 drawn, 1 filmed) of `count` films, and of frames alone."""
    scenes = [source.scene for source in dataset.draw(count, SHAPES_SIDE, SHAPES_FRAMES, seed=5)]
    numbers = [f"{number:02d}" for number in range(SHAPES_FRAMES)]
    names, rows = {"film": ["whole"], "alone": numbers}, {"film": [], "alone": []}
    for number, scene in enumerate(scenes):
        write_clips(folder / f"{number}", render(scene, SHAPES_FRAMES, SHAPES_SIDE, SHAPES_SIDE))
        for kind, clips in names.items():
            caption = {"prompt": scene.caption()}
            rows[kind] += [{"id": f"{number}-{name}", "video": f"{number}/{name}.mp4", **caption} for name in clips]
    runs = {
        kind: {
            "recipe": "fresco",
            "clips": clips,
            "model": SHIPPED,
            "options": {"seed": 1, "crf": 4, **({"feature_iterations": 0} if kind == "alone" else {})},
        }
        for kind, clips in rows.items()
    }
    run_snakemake(folder, declared_models(), runs)
    results = {}
    for kind, clips in names.items():
        produced = [
            np.stack(frames_of(*(folder / f"results/{kind}/{number}-{name}.mp4" for name in clips)))
            for number in range(count)
        ]
        results[kind] = {
            "flicker": float(np.mean([filmed.flicker(film, scene) for film, scene in zip(produced, scenes, strict=True)])),
            "nearness": float(np.mean([filmed.nearness(film, scene) for film, scene in zip(produced, scenes, strict=True)])),
        }
    return results


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    ways = {name: in_fresh_process("benchmarks.fresco", "measure", name == "kept") for name in ("kept", "computed")}
    memory = ways["computed"]["peak"] / 1e9
    whole = 2 * BATCH * (TOKENS[0] * TOKENS[1]) ** 2 * 4 / 1e9
    print_table(
        ["Gram matrices of the source", "GB at most", "CPU seconds per step"],
        [[name, figures["peak"] / 1e9, figures["seconds"]] for name, figures in ways.items()],
    )
    print(f"optimisation: {memory:.1f} GB (goal <= {PEAK_GOAL}); one copy of whole Gram matrices there: {whole:.1f} GB")
    with tempfile.TemporaryDirectory() as folder:
        shapes_results = shapes(Path(folder), 1 if options.quick else 6)
    print_table(
        ["shapes world", "flicker [levels]", "nearness of the look"],
        [[kind, row["flicker"], row["nearness"]] for kind, row in shapes_results.items()],
    )
    ratio = shapes_results["film"]["flicker"] / shapes_results["alone"]["flicker"]
    line = f"fresco: in shapes world {ratio:.2f} times the flicker of frames alone (goal 0.5), optimisation {memory:.1f} GB"
    line += f" (goal <= {PEAK_GOAL:.0f})"
    results = {"optimisation": ways, "shapes": shapes_results}
    if not CLIP.is_file():
        return finish(f"{line}; {CLIP} is not here", results, options.json)
    with tempfile.TemporaryDirectory() as folder:
        results["flicker"] = films(Path(folder), 11 if options.quick else FRAMES)
    rows = [[control, *(row[kind] for kind in ("source", "film", "alone"))] for control, row in results["flicker"].items()]
    print_table(["ControlNet sees", "source", "film", "frames alone"], rows)
    worst = max(row["film"] / row["alone"] for row in results["flicker"].values())
    finish(f"{line}; with random weights {worst:.2f} times at most (goal < {GOAL:.0f})", results, options.json)


if __name__ == "__main__":
    main()
