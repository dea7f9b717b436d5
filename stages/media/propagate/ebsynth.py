"""Patches by EbSynth's own program, where a user has put one on the PATH; the project brings none."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from stages.media.flow import Match, grid
from stages.media.propagate.patches import WEIGHTS, Pair, Search
from stages.media.read import read_picture
from stages.media.write import write_png
from stages.runtime.errors import ItemError, JobError

PROGRAM = "ebsynth"


def program() -> str:
    """The program's path. Raises JobError where there is none."""
    if found := shutil.which(PROGRAM):
        return found
    raise JobError(f"there is no program {PROGRAM} on the PATH", "install it, or take engine auto")


def synthesise(key: Pair, match: Match, search: Search) -> np.ndarray:
    """The frame of `match` as the key's picture has it, uint8 [H, W, 3], with the guides that our own search has too.

    Raises JobError where there is no such program, ItemError with what it said where it fails or leaves no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = {
            "style": key.picture,
            "colour": key.frame,
            "colour_target": match.frame,
            "position": ramps(grid(key.frame.shape)),
            "position_target": ramps(match.places),
        }
        files = {name: Path(folder, f"{name}.png") for name in (*pictures, "output")}
        for name, picture in pictures.items():
            write_png(files[name], picture)
        words = [program(), "-style", files["style"]]
        for guide in ("colour", "position"):
            words += ["-guide", files[guide], files[f"{guide}_target"], "-weight", WEIGHTS[guide]]
        words += ["-patchsize", search.size, "-searchvoteiters", search.votes, "-patchmatchiters", search.iterations]
        words += ["-output", files["output"]]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not files["output"].is_file():
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "it says nothing"
            raise ItemError(f"{PROGRAM} failed with exit code {done.returncode}: {said}", "mend that, or take engine auto")
        return read_picture(files["output"])


def ramps(places: np.ndarray) -> np.ndarray:
    """A map as a picture, uint8 [H, W, 3]: x is red, y is green, 0 to 255 over the longer side."""
    scaled = np.clip(np.rint(places * (255 / max(places.shape))), 0, 255).astype(np.uint8)
    return np.concatenate([scaled, np.zeros_like(scaled[..., :1])], axis=-1)
