"""How much a film of FRESCO flickers, against the same networks on every frame alone; and what its optimisation takes.

The first 32 frames of car-turn.mp4 (480x480, from the folder videos of $KINEMAKE_MEDIA, by default ../shared/media beside
the project), scaled to 256x256, go through snakemake with a tiny Stable Diffusion and ControlNets of random weights, as soft
edges, hard edges and depth: a keyframe each 5 frames, 20 steps of which 5 are left out. A frame alone has no neighbours to
be led by, and nothing is optimised. Flicker is the mean difference of neighbouring frames along the flow of the source, in
levels, where that flow can be relied on. The limit is the source's own.

The same with the shipped model on clips of shapes world, where it is known by formula what should change from frame to frame
and what should not, and how near a film is to the look that it is to reach.

The optimisation is that of the last up block of Stable Diffusion 1.5 for 8 keyframes of 896x512, in a process of its own,
beside what one copy of the Gram matrices of both halves would take there.

    python -m benchmarks.fresco [--quick] [--json FILE]
"""

import json
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.harness import MEDIA, finish, in_fresh_process, parse_arguments, print_table, snakemake
from benchmarks.shapes import declared_models
from stages.media.flow import consistent, correspondence, sample
from stages.media.read import frames
from stages.media.shapes import dataset, filmed
from stages.media.shapes.world import render
from stages.media.write import VideoWriter
from stages.models.fresco.features import Motion, directions, optimised
from stages.models.fresco.options import CONTROLS
from tests.tiny import sd

CLIP, FRAMES, SIDE = MEDIA / "videos/car-turn.mp4", 32, 256
TOLD = {"prompt": "a toy car turns in the snow", "seed": 1, "size": f"{SIDE}*{SIDE}", "crf": 4}
SHIPPED, SHAPES_SIDE, SHAPES_FRAMES = "shapes-fresco", 128, 17
BATCH, CHANNELS, TOKENS = 8, 640, (64, 112)  # of 896x512 in the last up block
GOAL, PEAK_GOAL = 1.0, 3.0  # times the flicker of frames alone, GB


def peak() -> dict:
    """Bytes that two steps of the optimisation add to its input."""
    motion = Motion(*(torch.zeros(BATCH, 2, 512, 896),) * 2, *(torch.zeros(BATCH, 512, 896),) * 2)
    features = torch.randn(2 * BATCH, CHANNELS, *TOKENS)
    reference = directions(features)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimised(features, reference, motion, iterations=2)
    return {"peak": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def flicker(made: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> float:
    apart = []
    for (before, after), (first, second) in zip(pairwise(made), pairwise(seen)):
        there, back = correspondence(second, first), correspondence(first, second)
        apart.append(cv2.absdiff(sample(before, there), after)[consistent(there, back)].mean())
    return float(np.mean(apart))


def write_clips(folder: Path, pictures: Sequence[np.ndarray]) -> None:
    """A clip of square pictures, and a clip of each of them alone."""
    folder.mkdir(exist_ok=True)
    clips = {"whole": pictures, **{f"{number:02d}": [rgb] for number, rgb in enumerate(pictures)}}
    for name, part in clips.items():
        side = len(part[0])
        with VideoWriter(folder / f"{name}.mp4", side, side, 25, crf=4) as video:
            for rgb in part:
                video.write(rgb)


def frames_of(*videos: Path) -> list[np.ndarray]:
    return [frame.rgb for video in videos for frame in frames(video)]


def make(folder: Path, models: dict, runs: dict) -> None:
    (folder / "config.yaml").write_text(json.dumps({"models": models, "runs": runs}))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(snakemake(2), cwd=folder, check=True, **quiet)


def films(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Flicker by what the ControlNet is shown: of the film, of frames alone, of the source."""
    sd.make(folder / "sd")
    pictures = [cv2.resize(frame.rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in islice(frames(CLIP), count)]
    write_clips(folder, pictures)
    seen = frames_of(folder / "whole.mp4")
    names = {"film": ["whole"], "alone": [f"{number:02d}" for number in range(count)]}
    runs = {
        f"{kind}-{control}": {
            "recipe": "fresco",
            "clips": [{"id": name, "video": f"{name}.mp4"} for name in clips],
            "model": "sd",
            "options": {**TOLD, "controlnet_type": control, **({"feature_iterations": 0} if kind == "alone" else {})},
        }
        for control in CONTROLS
        for kind, clips in names.items()
    }
    make(folder, {"sd": {"family": "fresco", "path": "sd", "dtype": "float32"}}, runs)
    results = {}
    for control in CONTROLS:
        made = {
            kind: frames_of(*(folder / f"results/{kind}-{control}/{name}.mp4" for name in clips))
            for kind, clips in names.items()
        }
        assert len(made["film"]) == count
        results[control] = {kind: flicker(pictures, seen) for kind, pictures in made.items()}
        results[control]["source"] = flicker(seen, seen)
    return results


def shapes(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Flicker in levels and nearness of the look (0 drawn, 1 filmed) of `count` films, and of frames alone."""
    scenes = [source.scene for source in dataset.draw(count, SHAPES_SIDE, SHAPES_FRAMES, seed=5)]
    numbers = [f"{number:02d}" for number in range(SHAPES_FRAMES)]
    names, rows = {"film": ["whole"], "alone": numbers}, {"film": [], "alone": []}
    for place, scene in enumerate(scenes):
        write_clips(folder / f"{place}", render(scene, SHAPES_FRAMES, SHAPES_SIDE, SHAPES_SIDE))
        for kind, clips in names.items():
            told = {"prompt": scene.caption()}
            rows[kind] += [{"id": f"{place}-{name}", "video": f"{place}/{name}.mp4", **told} for name in clips]
    runs = {
        kind: {
            "recipe": "fresco",
            "clips": clips,
            "model": SHIPPED,
            "options": {"seed": 1, "crf": 4, **({"feature_iterations": 0} if kind == "alone" else {})},
        }
        for kind, clips in rows.items()
    }
    make(folder, declared_models(), runs)
    results = {}
    for kind, clips in names.items():
        made = [
            np.stack(frames_of(*(folder / f"results/{kind}/{place}-{name}.mp4" for name in clips))) for place in range(count)
        ]
        results[kind] = {
            "flicker": float(np.mean([filmed.flicker(film, scene) for film, scene in zip(made, scenes, strict=True)])),
            "nearness": float(np.mean([filmed.nearness(film, scene) for film, scene in zip(made, scenes, strict=True)])),
        }
    return results


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    memory = in_fresh_process("benchmarks.fresco", "peak")["peak"] / 1e9
    whole = 2 * BATCH * (TOKENS[0] * TOKENS[1]) ** 2 * 4 / 1e9
    print(f"optimisation: {memory:.1f} GB (goal <= {PEAK_GOAL}); one copy of whole Gram matrices there: {whole:.1f} GB")
    with tempfile.TemporaryDirectory() as folder:
        known = shapes(Path(folder), 1 if options.quick else 6)
    print_table(
        ["shapes world", "flicker [levels]", "nearness of the look"],
        [[kind, found["flicker"], found["nearness"]] for kind, found in known.items()],
    )
    ratio = known["film"]["flicker"] / known["alone"]["flicker"]
    line = f"fresco: in shapes world {ratio:.2f} times the flicker of frames alone (goal 0.5), optimisation {memory:.1f} GB"
    line += f" (goal <= {PEAK_GOAL:.0f})"
    results = {"peak": memory, "shapes": known}
    if not CLIP.is_file():
        return finish(f"{line}; {CLIP} is not here", results, options.json)
    with tempfile.TemporaryDirectory() as folder:
        results["flicker"] = films(Path(folder), 11 if options.quick else FRAMES)
    rows = [
        [control, *(found[kind] for kind in ("source", "film", "alone"))] for control, found in results["flicker"].items()
    ]
    print_table(["ControlNet sees", "source", "film", "frames alone"], rows)
    worst = max(found["film"] / found["alone"] for found in results["flicker"].values())
    finish(f"{line}; with random weights {worst:.2f} times at most (goal < {GOAL:.0f})", results, options.json)


if __name__ == "__main__":
    main()
