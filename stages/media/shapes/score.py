"""How true generated clips and captions are to shapes world: pure measures, from pixels and words to numbers.

A measure is a figure by name: a truth value (right or wrong), or a number whose name ends in its unit. Pixels of distances
are those of a 64-pixel picture, whatever the size of the clip. A shape that cannot be found is a whole picture away.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.media.shapes import filmed
from stages.media.shapes.oracle import Reading, read
from stages.media.shapes.world import COLORS, DIRECTIONS, HELD_OUT, SHAPES, SPEEDS, Scene, render, wrapped

SLOTS = {"color": COLORS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}
WRONG = dict.fromkeys(SLOTS, False)  # what a clip that was not made scores
NO_CAPTION = dict.fromkeys(["caption_exact", *(f"caption_{slot}" for slot in SLOTS)], False)  # and one without a caption
PICTURE = 64.0
BEST_PSNR = 100.0  # decibels; of equal pictures it would be infinite
Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """The figures of one clip. `failed` says why there is no result; `held_out`: its combination was never trained on."""

    clip: str
    held_out: bool
    failed: str = ""
    figures: Figures = field(default_factory=dict)


def is_held_out(named: Mapping[str, str]) -> bool:
    return (named.get("color"), named.get("shape")) in HELD_OUT


def slots(text: str) -> dict[str, str]:
    """The first colour, shape, direction and speed that a text names; those that it does not name are left out."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    found = {slot: next((word for word in words if word in known), "") for slot, known in SLOTS.items()}
    return {slot: word for slot, word in found.items() if word}


def caption(said: str, true: str) -> Figures:
    """Is it the true caption, word for word; and is each of its facts right."""
    facts = slots(said)
    right = {f"caption_{slot}": facts.get(slot) == word for slot, word in slots(true).items()}
    return {"caption_exact": said.strip().lower() == true, **right}


def continuation(clip: np.ndarray, scene: Scene, start: int) -> Figures:
    """A clip, uint8 [T, H, W, 3], against the scene's frames start, start + 1, ...; its first one repeats the source's last.

    `gain_db` is what the clip has over the true first frame standing still.
    """
    return _compare(clip, scene, start)[0]


def _compare(clip: np.ndarray, scene: Scene, start: int) -> tuple[Figures, Reading]:
    count, height, width, _ = clip.shape
    true = render(scene, count, width, height, start)
    seen, places = read(clip), read(true).centers
    whole, still = psnr(clip, true), psnr(true[:1], true)
    figures = {
        "color": seen.color == scene.color,
        "shape": seen.shape == scene.shape,
        "direction": seen.direction == scene.direction,
        "speed": seen.speed == scene.speed,
        "psnr_db": whole,
        "still_psnr_db": still,
        "gain_db": whole - still,
        "end_point_px": apart(seen.centers[-1], places[-1], clip),
        "seam_px": apart(seen.centers[0], places[0], clip),
    }
    return figures, seen


def chain(links: Sequence[np.ndarray], scene: Scene, start: int, planned: int) -> Figures:
    """The links of a chain against the scene; `planned` of them there should be, and a missing one is wrong.

    `seam_px` is the mean distance from a shape's place in the last frame before a link to that in the link's first one;
    `end_point_px` is that of the last link that there is, against where the scene has come by then.
    """
    figures: Figures = {}
    steps: list[Figures] = []
    seams: list[float] = []
    before = None
    for clip in links:
        step, seen = _compare(clip, scene, start)
        seams.append(step["seam_px"] if before is None else apart(before, seen.centers[0], clip))
        steps.append(step)
        start, before = start + len(clip) - 1, seen.centers[-1]
    steps += [WRONG] * (planned - len(links))
    for name in ("color", "shape", "direction"):
        figures[f"{name}_in_every_link"] = all(step[name] for step in steps)
    for number, step in enumerate(steps, 1):
        figures |= {f"link{number:02d}_{name}": step[name] for name in ("color", "shape", "direction")}
    if links:
        figures |= {"end_point_px": steps[len(links) - 1]["end_point_px"], "seam_px": statistics.fmean(seams)}
    return figures


def parts(film: Sequence[tuple[np.ndarray, str]], planned: int = 0) -> Figures:
    """The parts of a film, uint8 [T, H, W, 3], each against its prompt; one that is missing is wrong.

    A part begins with the last frame of the one before, so that its motion shows at once.
    """
    steps = [told(clip, prompt) for clip, prompt in film]
    steps += [WRONG | {"color_shape_direction": False}] * (planned - len(film))
    names = ("color", "shape", "direction", "color_shape_direction")
    figures = {f"{name}_in_every_part": all(step.get(name, True) for step in steps) for name in names}
    for number, step in enumerate(steps, 1):
        figures |= {f"part{number:02d}_{name}": step[name] for name in names if name in step}
    return figures


def told(clip: np.ndarray, prompt: str) -> Figures:
    """A clip, uint8 [T, H, W, 3], against what its prompt names; what the prompt leaves open cannot be wrong."""
    seen = read(clip)
    right = {slot: getattr(seen, slot) == word for slot, word in slots(prompt).items()}
    return {**right, "color_shape_direction": all(right.get(slot, True) for slot in ("color", "shape", "direction"))}


def untold(prompt: str) -> Figures:
    """What a prompt scores that no clip was made of."""
    return {**dict.fromkeys(slots(prompt), False), "color_shape_direction": False}


def translated(film: np.ndarray, scene: Scene) -> Figures:
    """A film, uint8 [T, H, W, 3], of a scene from its first frame on, in the filmed look: is it reached, is the scene kept.

    `nearness_of_look` is 0 for what is drawn and 1 for what is filmed; `flicker_levels` is what changes from frame to frame
    where nothing should.
    """
    seen, nearness = read(film), filmed.nearness(film, scene)
    kept = {name: getattr(seen, name) == getattr(scene, name) for name in ("color", "shape", "direction")}
    return {"look": nearness > 0.5, **kept, "nearness_of_look": nearness, "flicker_levels": filmed.flicker(film, scene)}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of pictures of 0 to 255, in decibels, over all of their pixels together."""
    error = np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2, dtype=np.float64)
    return float(min(BEST_PSNR, 10 * np.log10(255**2 / max(error, 1e-12))))


def apart(one: np.ndarray, other: np.ndarray, clip: np.ndarray) -> float:
    """Distance of two places in a clip, in pixels of a 64-pixel picture; where one is not known, the picture's side."""
    height, width = clip.shape[1:3]
    distance = float(np.hypot(*wrapped(one - other, np.array([width, height])))) * PICTURE / min(height, width)
    return PICTURE if np.isnan(distance) else distance


def summarize(rows: Sequence[Row]) -> dict[str, Figures]:
    """By group, `seen` and `held_out`: numbers of clips and of failed ones, shares of right ones, means and a median.

    A figure is taken over the clips that have it: pixels of a clip that was not made are not, its facts are wrong.
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
        if name == "end_point_px":  # one shape that was lost outweighs fifty that were not
            figures["median_end_point_px"] = statistics.median(values)
    return figures
