"""Patch synthesis by the EbSynth program, if it is on the PATH; the project does not include it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from stages.media.flow import Match, grid
from stages.media.propagate.patches import WEIGHTS, Pair, Search
from stages.media.read import read_image
from stages.media.write import write_png
from stages.runtime.errors import ItemError, JobError

PROGRAM = "ebsynth"


def program() -> str:
    """The path of the program. Raises JobError if there is none."""
    if found := shutil.which(PROGRAM):
        return found
    raise JobError(f"there is no program {PROGRAM} on the PATH", "install it, or set --engine auto")


def synthesise(key: Pair, match: Match, search: Search) -> np.ndarray:
    """The translated image of the frame of `match`, uint8 [H, W, 3], with the same guides as our own patch search.

    Raises JobError if there is no such program, ItemError with its output if it fails or writes no image.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = {
            "style": key.translated,
            "colour": key.frame,
            "colour_target": match.frame,
            "position": encode_positions(grid(key.frame.shape)),
            "position_target": encode_positions(match.places),
        }
        files = {name: Path(folder, f"{name}.png") for name in (*images, "output")}
        for name, image in images.items():
            write_png(files[name], image)
        command: list[object] = [program(), "-style", files["style"]]
        for guide in ("colour", "position"):
            command += ["-guide", files[guide], files[f"{guide}_target"], "-weight", WEIGHTS[guide]]
        command += ["-patchsize", search.size, "-searchvoteiters", search.votes, "-patchmatchiters", search.iterations]
        command += ["-output", files["output"]]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not files["output"].is_file():
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "no message"
            raise ItemError(f"{PROGRAM} failed with exit code {done.returncode}: {said}", "fix that, or set --engine auto")
        return read_image(files["output"])


def encode_positions(places: np.ndarray) -> np.ndarray:
    """A map as an image, uint8 [H, W, 3]: x is red, y is green, 0 to 255 over the longer side."""
    scaled = np.clip(np.rint(places * (255 / max(places.shape))), 0, 255).astype(np.uint8)
    return np.concatenate([scaled, np.zeros_like(scaled[..., :1])], axis=-1)
