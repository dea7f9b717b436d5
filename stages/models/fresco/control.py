"""What of the source a ControlNet is shown and a network finds: soft edges or depth; one map per frame, uint8 [H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class HED(nn.Module):
    """Soft edges (holistically-nested edge detection, arXiv:1504.06375), with the weights' names of ControlNet's annotator:
    the five stages of a VGG16, and of each a map of its own; the mean of them all tells how much of an edge a pixel is."""

    STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions, channels

    def __init__(self, stages: Sequence[tuple[int, int]] = STAGES):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        before = 3
        for number, (count, channels) in enumerate(stages, 1):
            self.add_module(f"block{number}", Stage(before, channels, count))
            before = channels

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        """Frames [B, 3, H, W] in 0..255 to [B, H, W] in 0..1."""
        x, maps = rgb - self.norm, []
        for number, stage in enumerate(self.stages()):
            x = stage(F.max_pool2d(x, 2) if number else x)
            maps.append(F.interpolate(stage.projection(x), rgb.shape[2:], mode="bilinear"))
        return torch.sigmoid(torch.cat(maps, dim=1).mean(1))

    def stages(self) -> list[Stage]:
        return [module for name, module in self.named_children() if name.startswith("block")]

    @classmethod
    def load(cls, folder: Path) -> HED:
        """From the safetensors file in a folder. Its width is told by the weights."""
        (path,) = folder.glob("*.safetensors")
        weights = load_file(path)
        stages = []
        while biases := [w for name, w in weights.items() if name.startswith(f"block{len(stages) + 1}.convs.")]:
            stages.append((len(biases) // 2, biases[0].shape[0]))
        net = cls(stages)
        net.load_state_dict(weights)
        return net.eval()


class Stage(nn.Module):
    """3x3 convolutions, and the projection of what they make to one map."""

    def __init__(self, before: int, channels: int, count: int):
        super().__init__()
        sizes = [before, *[channels] * (count - 1)]
        self.convs = nn.Sequential(*(nn.Conv2d(size, channels, 3, padding=1) for size in sizes))
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convs:
            x = F.relu(convolution(x))
        return x


@torch.no_grad()
def soft_edges(net: HED, frames: Sequence[np.ndarray], device: str) -> np.ndarray:
    """One frame after the other: the maps of a whole film would not be in memory together."""
    edges = (net(torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None].float())[0] for rgb in frames)
    return np.stack([(255 * edge).clamp(0, 255).byte().cpu().numpy() for edge in edges])


@torch.no_grad()
def depth(net, processor, frames: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Nearness by a DPT (arXiv:2103.13413), 255 for the nearest place of the whole clip: frame by frame it would flicker."""
    height, width = frames[0].shape[:2]
    near = []
    for rgb in frames:
        pixels = processor(images=rgb, return_tensors="pt").pixel_values.to(device)
        near.append(net(pixels).predicted_depth.float().cpu())
    near = F.interpolate(torch.stack(near, dim=1), (height, width), mode="bicubic")[0].numpy()
    low, high = near.min(), near.max()
    return (255 * (near - low) / max(high - low, 1e-6)).round().astype(np.uint8)
