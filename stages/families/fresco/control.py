"""Maps that a network estimates from the source: soft edges, depth or masks; one map per frame, uint8 [H, W]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class HED(nn.Module):
    """Soft edges (holistically-nested edge detection, arXiv:1504.06375), with the weights' names of ControlNet's annotator.

    Each of the five blocks of a VGG16 is projected to a map; the sigmoid of their mean is the strength of the edge.
    """

    BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions, channels

    def __init__(self, blocks: Sequence[tuple[int, int]] = BLOCKS):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        in_channels = 3
        for number, (count, channels) in enumerate(blocks, 1):
            self.add_module(f"block{number}", Block(in_channels, channels, count))
            in_channels = channels

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        """Frames [B, 3, H, W] in 0..255 to edges [B, H, W] in 0..1."""
        x, maps = rgb - self.norm, []
        for number, block in enumerate(self.blocks()):
            x = block(F.max_pool2d(x, 2) if number else x)
            maps.append(F.interpolate(block.projection(x), rgb.shape[2:], mode="bilinear"))
        return torch.sigmoid(torch.cat(maps, dim=1).mean(1))

    def blocks(self) -> list[Block]:
        return [module for module in self.children() if isinstance(module, Block)]

    @classmethod
    def load(cls, folder: Path) -> HED:
        """Load the safetensors file of a folder, in eval mode. The blocks' sizes follow from the weights."""
        (path,) = folder.glob("*.safetensors")
        weights = load_file(path)
        blocks: list[tuple[int, int]] = []
        while tensors := [w for name, w in weights.items() if name.startswith(f"block{len(blocks) + 1}.convs.")]:
            blocks.append((len(tensors) // 2, tensors[0].shape[0]))
        net = cls(blocks)
        net.load_state_dict(weights)
        return net.eval()


class Block(nn.Module):
    """3x3 convolutions, and a projection of their output to one map."""

    def __init__(self, in_channels: int, channels: int, count: int):
        super().__init__()
        sizes = [in_channels, *[channels] * (count - 1)]
        self.convs = nn.Sequential(*(nn.Conv2d(size, channels, 3, padding=1) for size in sizes))
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convs:
            x = F.relu(convolution(x))
        return x


@torch.no_grad()
def soft_edges(net: HED, frames: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Soft edges of frames uint8 [H, W, 3]: uint8 [N, H, W]. One frame at a time, which bounds the memory."""
    edges = (net(torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None].float())[0] for rgb in frames)
    return np.stack([(255 * edge).clamp(0, 255).byte().cpu().numpy() for edge in edges])


@torch.no_grad()
def depth(net: Any, processor: Any, frames: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Inverse depth of frames uint8 [H, W, 3] by a DPT (arXiv:2103.13413): uint8 [N, H, W], 255 for the nearest point.

    It is scaled over the whole clip: scaled frame by frame it would flicker.
    """
    height, width = frames[0].shape[:2]
    predicted = []
    for rgb in frames:
        pixels = processor(images=rgb, return_tensors="pt").pixel_values.to(device)
        predicted.append(net(pixels).predicted_depth.float().cpu())
    near = F.interpolate(torch.stack(predicted, dim=1), (height, width), mode="bicubic")[0].numpy()
    low, high = near.min(), near.max()
    return (255 * (near - low) / max(high - low, 1e-6)).round().astype(np.uint8)


def background_class(labels: Mapping[Any, str]) -> int | None:
    """The number of the class "background" among the labels of a network, by number or its digits; None if there is none."""
    numbers = [number for number, label in labels.items() if str(label).lower() == "background" and str(number).isdecimal()]
    return int(numbers[0]) if numbers else None


@torch.no_grad()
def foreground(net: Any, processor: Any, frames: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Masks of frames uint8 [H, W, 3] by a network for semantic segmentation: uint8 [N, H, W], 255 for the foreground.

    The foreground is every class but the background; the grey levels are its probability.
    """
    background, size, masks = background_class(net.config.id2label), frames[0].shape[:2], []
    for rgb in frames:
        pixels = processor(images=rgb, return_tensors="pt").pixel_values.to(device)
        logits = F.interpolate(net(pixels).logits.float(), size, mode="bilinear")
        masks.append((255 * (1 - logits.softmax(dim=1)[0, background])).round().byte().cpu().numpy())
    return np.stack(masks)
