"""Training data: shapes world in two looks, drawn and filmed."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.families.shared.training.data import ShapesDataset
from stages.media.shapes import filmed, world


class TwoLooks(ShapesDataset):
    """Clips that alternate between the two looks; the caption ends with the name of the look."""

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scene, look = self.scene(index, rng), filmed.LOOKS[index % 2]
        size = self.num_frames, self.frame_size, self.frame_size
        drawn = look == "drawn"
        frames = world.render(scene, *size) if drawn else filmed.film(scene, *size, grain=int(rng.integers(2**31)))
        return {"frames": frames, "text": f"{scene.caption()}, {look}", "scene": scene}
