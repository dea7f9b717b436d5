"""Propagation of a key in one direction over 1 to 5 frames: the error of each engine, and its CPU seconds per frame.

Frames are 832x480. Three scenes: a synthetic one, an image that pans, zooms and wobbles behind a disc of another image that
moves 9 pixels a frame (true disocclusion); and two filmed ones of 480x480, car-turn.mp4 and boxer.mp4, scaled by Lanczos to
cover 832x480 and cropped in the middle (extract_frames --size "832*480" --fit crop). They are read from the folder videos
of $KINEMAKE_MEDIA, by default ../shared/media beside the project. A key is a frame in a known look: a bilateral filter (9
pixels, 40 levels, 7 pixels), a cosine as tone curve, the channels swapped, darkened to a fifth where the gradient exceeds
19 levels a pixel. The truth is the same look of the frame itself. PSNR in dB, over red, green and blue, is the mean over
keys.

CPU seconds are those of one process, for flow, search and vote of one direction. The time that numba takes to compile is
reported separately. EbSynth's own program runs too if it is on the PATH. Measured elsewhere, on other stills and another
look, it took 8.5 (3 votes, 2 sweeps), 32 (6/4) and 92 (12/6) CPU seconds a frame.
"""

import shutil
import time
from collections.abc import Iterator
from itertools import islice

import cv2
import numpy as np

from benchmarks.harness import MEDIA, finish, parse_arguments, print_table
from stages.media.fit import fit_image
from stages.media.flow import grid, match_frames, sample
from stages.media.propagate.engines import Engine
from stages.media.propagate.patches import Pair
from stages.media.read import frames

GOAL, FLOW_HOLDS_GOAL, LOSS_GOAL = 14, 3, 0.2  # CPU seconds a frame, the same where the flow holds, dB
SIZE = (832, 480)
GAPS = (1, 3, 5)
VIDEOS = MEDIA / "videos"
STARTS = {"synthetic": (0, 40), "car-turn.mp4": (0, 25, 50), "boxer.mp4": (0, 10, 20)}


def main():
    options = parse_arguments(__doc__)
    cv2.setNumThreads(1)
    gaps = GAPS[:2] if options.quick else GAPS
    engines = ["warp", "hybrid", "patch", "auto", *(["ebsynth"] if shutil.which("ebsynth") else [])]
    compiling = compile_seconds()
    results = {}
    for scene, starts in STARTS.items():
        if scene != "synthetic" and not (VIDEOS / scene).is_file():
            print(f"skipped {scene}: it is not in {VIDEOS} (set KINEMAKE_MEDIA)")
            continue
        clips = [clip(scene, start, gaps[-1] + 1) for start in starts[: 1 if options.quick else None]]
        results[scene] = {"flow fails": flow_failure(clips)} | {engine: measure(engine, clips, gaps) for engine in engines}
    rows = []
    for scene, result in results.items():
        rows += [
            [scene, f"{result['flow fails']:.0%}", engine, *(f"{result[engine]['psnr'][gap]:.2f}" for gap in gaps)]
            + [result[engine]["cpu_s"]]
            for engine in engines
        ]
    print_table(["scene", "flow fails", "engine", *(f"dB at {gap}" for gap in gaps), "CPU s/frame"], rows)
    print(f"compiling, once in a process: {compiling:.1f} CPU s")
    loss = max(
        max(result[engine]["psnr"][gap] for engine in ("warp", "patch")) - result["auto"]["psnr"][gap]
        for result in results.values()
        for gap in gaps
    )
    holding = max(r["auto"]["cpu_s"] for r in results.values() if r["flow fails"] <= Engine.full_above)
    worst = max(result["auto"]["cpu_s"] for result in results.values())
    print(f"auto below the better of warp and patch by at most {max(loss, 0):.2f} dB (goal <= {LOSS_GOAL})")
    print(f"auto where the flow holds: {holding:.1f} CPU s per frame (goal <= {FLOW_HOLDS_GOAL})")
    finish(
        f"propagate: {worst:.1f} CPU s per frame in the worst scene (goal <= {GOAL})",
        {"results": results, "loss_db": loss, "flow_holds_cpu_s": holding, "worst_cpu_s": worst, "compile_s": compiling},
        options.json,
    )


def compile_seconds() -> float:
    """CPU seconds of the first use of the patches in a process, on an image too small to matter."""
    small = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    start = time.process_time()
    list(Engine("patch").propagate(Pair(small[0], small[0]), small[1:]))
    return time.process_time() - start


def clip(scene: str, start: int, count: int) -> list[np.ndarray]:
    """`count` frames from `start` on, uint8 [480, 832, 3]."""
    if scene == "synthetic":
        return list(islice(synthetic(), start, start + count))
    return [fit_image(frame.rgb, SIZE, "crop") for frame in islice(frames(VIDEOS / scene), start, start + count)]


def synthetic() -> Iterator[np.ndarray]:
    width, height = SIZE
    behind, before = dead_leaves(1200, 800, seed=0), dead_leaves(400, 400, seed=1)
    positions = grid((height, width))
    for number in range(50):
        offset = np.float32([600 + 2.2 * number, 400 + 1.1 * number])
        sampled = (positions - np.float32([width / 2, height / 2])) * np.float32(1 - 0.004 * number) + offset
        sampled[..., 0] += 1.5 * np.sin(positions[..., 1] / 60 + 0.5 * number)
        centre = np.float32([200 + 9 * number, 240])
        disc = np.clip(110.5 - np.linalg.norm(positions - centre, axis=-1), 0, 1)[..., None]
        layers = sample(behind, sampled, cv2.INTER_CUBIC), sample(before, positions - centre + 200, cv2.INTER_CUBIC)
        yield np.rint((1 - disc) * layers[0] + disc * layers[1]).astype(np.uint8)


def dead_leaves(width: int, height: int, seed: int) -> np.ndarray:
    """Overlapping discs of all sizes with grain, uint8 [height, width, 3]: edges are as dense as in photographs.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(4000):
        radius = int(min(6 / rng.uniform(0.03, 1), 150))
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(image, centre, radius, rng.integers(30, 226, 3).tolist(), cv2.FILLED, cv2.LINE_AA)
    grain = cv2.GaussianBlur(rng.normal(0, 40, image.shape), (0, 0), 1.5)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def look(rgb: np.ndarray) -> np.ndarray:
    """The known look of a frame, uint8 [H, W, 3]."""
    smooth = cv2.bilateralFilter(rgb, 9, 40, 7)
    tones = np.rint(255 * (0.5 - 0.5 * np.cos(np.pi * np.arange(256) / 255))).astype(np.uint8)
    recoloured = tones[smooth][..., [2, 0, 1]]
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    steepness = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8  # levels a pixel
    return np.rint(recoloured * np.clip(1 - steepness / 24, 0.2, 1)[..., None]).astype(np.uint8)


def flow_failure(clips: list[list[np.ndarray]]) -> float:
    """Share of the pixels at which the flow is not reliable, over all gaps."""
    return float(
        np.mean([~match.reliable for key, *others in clips for match in match_frames(key, others, Engine.residual)])
    )


def measure(engine: str, clips: list[list[np.ndarray]], gaps: tuple[int, ...]) -> dict:
    """PSNR at each gap, mean over clips, and CPU seconds per frame, mean over all frames."""
    psnr, seconds = {gap: [] for gap in gaps}, []
    for key, *others in clips:
        propagated = Engine(engine).propagate(Pair(key, look(key)), others)
        for number, frame in enumerate(others, 1):
            start = time.process_time()
            image = next(propagated).image
            seconds.append(time.process_time() - start)
            if number in gaps:
                psnr[number].append(cv2.PSNR(image, look(frame)))
    return {"psnr": {gap: float(np.mean(values)) for gap, values in psnr.items()}, "cpu_s": float(np.mean(seconds))}


if __name__ == "__main__":
    main()
