"""Scores of generated clips and captions of shapes world, as pure functions of pixels and words.

A score is a dict of figures: a bool (right or wrong), or a number whose name ends in its unit. Distances are in pixels of a
64-pixel frame, whatever the size of the clip. The distance of a shape that is not found is the side of that frame.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.media.shapes import filmed
from stages.media.shapes.oracle import MIN_SPEED, Reading, read, uniform_motion
from stages.media.shapes.world import COLORS, DIRECTIONS, HELD_OUT, SHAPES, SPEEDS, Scene, render, wrap

SLOTS = {"color": COLORS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}
WRONG = dict.fromkeys(SLOTS, False)  # score of a missing clip
NO_CAPTION = dict.fromkeys(["caption_exact", *(f"caption_{slot}" for slot in SLOTS)], False)  # score of a missing caption
SIDE = 64.0  # of the frame that distances refer to
SEAM_STEPS = 8  # steps before and after a seam whose speeds are compared
MAX_PSNR = 100.0  # decibels; equal images would have an infinite one
Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """The figures of one clip. `failed` is the reason for a missing result; `held_out`: its combination is held out."""

    clip: str
    held_out: bool
    failed: str = ""
    figures: Figures = field(default_factory=dict)


def is_held_out(named: Mapping[str, str]) -> bool:
    """Whether the combination of `color` and `shape` is held out from training."""
    return (named.get("color"), named.get("shape")) in HELD_OUT


def slots(text: str) -> dict[str, str]:
    """The first colour, shape, direction and speed that a text names, by slot; no entry for a slot that it does not name."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    found = {slot: next((word for word in words if word in known), "") for slot, known in SLOTS.items()}
    return {slot: word for slot, word in found.items() if word}


def caption(generated: str, true: str) -> Figures:
    """Whether a caption equals the true one, and which of its slots are right."""
    named = slots(generated)
    right = {f"caption_{slot}": named.get(slot) == word for slot, word in slots(true).items()}
    return {"caption_exact": generated.strip().lower() == true, **right}


def continuation(clip: np.ndarray, scene: Scene, start: int) -> Figures:
    """Compare a clip, uint8 [T, H, W, 3], with frames start, start + 1, ... of the scene.

    `gain_db` is the PSNR of the clip minus that of its true first frame, repeated.
    """
    return _compare(clip, scene, start)[0]


def _compare(clip: np.ndarray, scene: Scene, start: int) -> tuple[Figures, Reading]:
    count, height, width, _ = clip.shape
    true = render(scene, count, width, height, start)
    seen, places = read(clip), read(true).centers
    moving, still = psnr(clip, true), psnr(true[:1], true)
    figures = {
        "color": seen.color == scene.color,
        "shape": seen.shape == scene.shape,
        "direction": seen.direction == scene.direction,
        "speed": seen.speed == scene.speed,
        "psnr_db": moving,
        "still_psnr_db": still,
        "gain_db": moving - still,
        "end_point_px": pixel_distance(seen.centers[-1], places[-1], clip),
        "seam_px": pixel_distance(seen.centers[0], places[0], clip),
    }
    return figures, seen


def chain(links: Sequence[np.ndarray], scene: Scene, start: int, planned: int, repeated: int = 1) -> Figures:
    """Compare the links of a chain with the scene; of `planned` links, a missing one counts as wrong.

    The first link begins with frame `start` of the scene. The first `repeated` frames of each further one repeat the last
    ones before it.

    `seam_px` is the mean distance between the shape's places in the last frame before a link and in the link's first frame.
    `seam_speed` is the speed in the `SEAM_STEPS` steps from that frame on, as a share of the speed in as many steps before
    it: the median over the seams before which the shape is seen to move. `end_point_px` is the distance to the true place in
    the last frame of the last link present.
    """
    figures: Figures = {}
    steps: list[Figures] = []
    seams: list[float] = []
    speeds: list[tuple[float, float]] = []  # before and after each seam
    before: np.ndarray | None = None
    for clip in links:
        step, seen = _compare(clip, scene, start)
        if before is None:
            seams.append(step["seam_px"])
        else:
            seams.append(pixel_distance(before[-1], seen.centers[0], clip))
            after = np.concatenate([before[-1:], seen.centers[repeated:]])
            speeds.append((speed(before[-SEAM_STEPS - 1 :], clip), speed(after[: SEAM_STEPS + 1], clip)))
        steps.append(step)
        start, before = start + len(clip) - repeated, seen.centers
    steps += [WRONG] * (planned - len(links))
    for name in ("color", "shape", "direction"):
        figures[f"{name}_in_every_link"] = all(step[name] for step in steps)
    for number, step in enumerate(steps, 1):
        figures |= {f"link{number:02d}_{name}": step[name] for name in ("color", "shape", "direction")}
    if links:
        figures |= {"end_point_px": steps[len(links) - 1]["end_point_px"], "seam_px": statistics.fmean(seams)}
    if known := [after / before for before, after in speeds if before >= MIN_SPEED and not np.isnan(after)]:
        figures["seam_speed"] = statistics.median(known)
    return figures


def parts(video: Sequence[tuple[np.ndarray, str]], planned: int = 0) -> Figures:
    """Compare the parts of a video, each a clip uint8 [T, H, W, 3] and its prompt; a missing part counts as wrong.

    A part begins with the last frame of the part before, so that its first motion is included.
    """
    steps = [prompt_match(clip, prompt) for clip, prompt in video]
    steps += [WRONG | {"color_shape_direction": False}] * (planned - len(video))
    names = ("color", "shape", "direction", "color_shape_direction")
    figures = {f"{name}_in_every_part": all(step.get(name, True) for step in steps) for name in names}
    for number, step in enumerate(steps, 1):
        figures |= {f"part{number:02d}_{name}": step[name] for name in names if name in step}
    return figures


def prompt_match(clip: np.ndarray, prompt: str) -> Figures:
    """Compare a clip, uint8 [T, H, W, 3], with the slots that its prompt names; other slots cannot be wrong."""
    seen = read(clip)
    right = {slot: getattr(seen, slot) == word for slot, word in slots(prompt).items()}
    return {**right, "color_shape_direction": all(right.get(slot, True) for slot in ("color", "shape", "direction"))}


def missing_clip(prompt: str) -> Figures:
    """The score of a prompt without a clip."""
    return {**dict.fromkeys(slots(prompt), False), "color_shape_direction": False}


def translation(video: np.ndarray, scene: Scene) -> Figures:
    """Score a translation, uint8 [T, H, W, 3], of a scene from its first frame on, to the filmed look.

    `nearness_of_look` is 0 for the drawn look and 1 for the filmed one; `flicker_levels` is the change from frame to frame
    where the scene does not change.
    """
    seen, nearness = read(video), filmed.nearness(video, scene)
    kept = {name: getattr(seen, name) == getattr(scene, name) for name in ("color", "shape", "direction")}
    return {"look": nearness > 0.5, **kept, "nearness_of_look": nearness, "flicker_levels": filmed.flicker(video, scene)}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in 0 to 255, in decibels, over all pixels together; at most `MAX_PSNR`."""
    error = np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2, dtype=np.float64)
    return float(min(MAX_PSNR, 10 * np.log10(255**2 / max(error, 1e-12))))


def speed(centers: np.ndarray, clip: np.ndarray) -> float:
    """Speed of a shape by its places [N, 2] in the frames of a clip, in pixels of a 64-pixel frame per frame.

    It is the slope of the line through the places, so that one misread place counts little. NaN if fewer than three are
    known.
    """
    height, width = clip.shape[1:3]
    times = np.flatnonzero(~np.isnan(centers[:, 0]))
    if len(times) < 3:
        return float("nan")
    velocity, _ = uniform_motion(times, centers[times], np.array([width, height]))
    return float(np.hypot(*velocity)) * SIDE / min(height, width)


def pixel_distance(one: np.ndarray, other: np.ndarray, clip: np.ndarray) -> float:
    """Distance of two places in a clip, in pixels of a 64-pixel frame; its side if one place is unknown (NaN)."""
    height, width = clip.shape[1:3]
    distance = float(np.hypot(*wrap(one - other, np.array([width, height])))) * SIDE / min(height, width)
    return SIDE if np.isnan(distance) else distance


def summarize(rows: Sequence[Row]) -> dict[str, Figures]:
    """For the groups `seen` and `held_out`: numbers of clips and of failed ones, shares of right ones, means and a median.

    A figure is averaged over the clips that have it: a missing clip has no distances, and counts as wrong in each slot.
    """
    groups = {"seen": [row for row in rows if not row.held_out], "held_out": [row for row in rows if row.held_out]}
    return {name: _summary(group) for name, group in groups.items() if group}


def _summary(rows: Sequence[Row]) -> Figures:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.figures.items():
            columns.setdefault(name, []).append(float(value))
    figures: Figures = {"clips": len(rows), "failed": sum(bool(row.failed) for row in rows)}
    for name, values in columns.items():
        figures[name] = statistics.fmean(values)
        if name == "end_point_px":  # a single lost shape dominates the mean
            figures["median_end_point_px"] = statistics.median(values)
    return figures
