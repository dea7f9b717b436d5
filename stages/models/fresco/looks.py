"""Shapes world in two looks, to train on: as drawn and as filmed."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.media.shapes import filmed, world
from stages.models.shared.training.data import ShapesDataset


class TwoLooks(ShapesDataset):
    """Every clip in one of the looks, which its caption names at the end."""

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scene, look = self.scene(index, rng), filmed.LOOKS[index % 2]
        size = self.num_frames, self.frame_size, self.frame_size
        drawn = look == "drawn"
        frames = world.render(scene, *size) if drawn else filmed.film(scene, *size, grain=int(rng.integers(2**31)))
        return {"frames": frames, "text": f"{scene.caption()}, {look}", "scene": scene}
