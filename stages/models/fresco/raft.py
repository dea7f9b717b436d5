"""RAFT (Teed and Deng 2020, arXiv:2003.12039): optical flow by a network, its weights named as in torchvision's raft_large.

Both pictures become features at an eighth of their size; how alike each place of the one is to each of the other is kept at
four scales; a recurrent unit looks up what lies around the present flow there, and mends it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from stages.media.flow import grid
from stages.models.fresco.features import tokens

SHRINK = 8  # sides of a picture are multiples of it
LEVELS, RADIUS = 4, 4  # of the likeness: scales, and places looked at around one in each
HIDDEN, CONTEXT, MOTION = 128, 128, 128  # channels
UPDATES = 12  # times that the flow is mended, as torchvision does where it is not told otherwise
WINDOW = (2 * RADIUS + 1) ** 2


class RAFT(nn.Module):
    """The flow from one picture to another."""

    def __init__(self):
        super().__init__()
        self.feature_encoder = Encoder(nn.InstanceNorm2d)
        self.context_encoder = Encoder(nn.BatchNorm2d)
        self.update_block = Update()
        self.mask_predictor = MaskPredictor()

    @classmethod
    def load(cls, folder: Path) -> RAFT:
        """From the safetensors file in a folder."""
        (path,) = folder.glob("*.safetensors")
        net = cls()
        net.load_state_dict(load_file(path))
        return net.eval()

    @torch.no_grad()
    def correspondence(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The map of `a` into `b`, both RGB, uint8 [H, W, 3]: float32 [H, W, 2], places (x, y) in pixels."""
        device = next(self.parameters()).device
        pictures = (torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1 for rgb in (a, b))
        return grid(a.shape) + self(*pictures)[0].permute(1, 2, 0).cpu().numpy()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """How far (x, y), in pixels, each place of `a` is moved in `b`, both [B, 3, H, W] in -1..1: [B, 2, H, W]."""
        features = self.feature_encoder(torch.cat([a, b])).chunk(2)
        likeness = pyramid(*features)
        hidden, context = self.context_encoder(a).split([HIDDEN, CONTEXT], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        here = torch.from_numpy(grid(hidden.shape[2:])).permute(2, 0, 1).expand(len(a), -1, -1, -1).to(a.device)
        flow = torch.zeros_like(here)
        for _ in range(UPDATES):
            seen = look_up(likeness, here + flow)
            hidden, change = self.update_block(hidden, context, seen, flow)
            flow = flow + change
        return enlarged(flow, self.mask_predictor(hidden))


def pyramid(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """How alike each place of `a` is to all of `b`, both [B, C, h, w], at each scale: [B h w, 1, h', w']."""
    batch, channels, height, width = a.shape
    products = tokens(a) @ b.flatten(2) / channels**0.5
    levels = [products.reshape(batch * height * width, 1, height, width)]
    for _ in range(LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def look_up(levels: list[torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """The likeness around the places `at` (x, y) [B, 2, h, w], at each scale: [B, 4 * 81, h, w]; outside of pictures 0."""
    batch, _, height, width = at.shape
    reach = torch.arange(-RADIUS, RADIUS + 1, device=at.device, dtype=at.dtype)
    around = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), dim=-1)  # the weights want the columns first
    centers = at.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for number, level in enumerate(levels):
        size = torch.tensor([level.shape[3] - 1, level.shape[2] - 1], device=at.device, dtype=at.dtype)
        window = 2 * (centers / 2**number + around) / size - 1
        found.append(F.grid_sample(level, window, align_corners=True).reshape(batch, height, width, WINDOW))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def enlarged(flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A flow [B, 2, h, w] at eight times its size: each place a mean of the nine around it, weighed by `mask`,
    [B, 9 * 64, h, w]."""
    batch, _, height, width = flow.shape
    weights = mask.view(batch, 1, 9, SHRINK, SHRINK, height, width).softmax(dim=2)
    around = F.unfold(SHRINK * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    made = (weights * around).sum(dim=2)  # [B, 2, 8, 8, h, w]
    return made.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, SHRINK * height, SHRINK * width)


def convolution(before: int, after: int, kernel: int, stride: int = 1, *rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, padding=kernel // 2), *rest)


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to features [B, 256, H / 8, W / 8]."""

    def __init__(self, norm: type[nn.Module]):
        super().__init__()
        self.convnormrelu = convolution(3, 64, 7, 2, norm(64), nn.ReLU())
        self.layer1 = nn.Sequential(Residual(64, 64, 1, norm), Residual(64, 64, 1, norm))
        self.layer2 = nn.Sequential(Residual(64, 96, 2, norm), Residual(96, 96, 1, norm))
        self.layer3 = nn.Sequential(Residual(96, 128, 2, norm), Residual(128, 128, 1, norm))
        self.conv = nn.Conv2d(128, 256, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(x)))))


class Residual(nn.Module):
    """Two convolutions beside the way straight through."""

    def __init__(self, before: int, after: int, stride: int, norm: type[nn.Module]):
        super().__init__()
        self.convnormrelu1 = convolution(before, after, 3, stride, norm(after), nn.ReLU())
        self.convnormrelu2 = convolution(after, after, 3, 1, norm(after), nn.ReLU())
        self.downsample = convolution(before, after, 1, stride, norm(after)) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.downsample(x) + self.convnormrelu2(self.convnormrelu1(x)))


class Update(nn.Module):
    """One mending of the flow."""

    def __init__(self):
        super().__init__()
        self.motion_encoder = MotionEncoder()
        self.recurrent_block = Recurrent()
        self.flow_head = FlowHead()

    def forward(self, hidden, context, seen, flow) -> tuple[torch.Tensor, torch.Tensor]:
        """The next `hidden` [B, 128, h, w] and the change of the flow [B, 2, h, w]."""
        told = torch.cat([context, self.motion_encoder(flow, seen)], dim=1)
        hidden = self.recurrent_block(hidden, told)
        return hidden, self.flow_head(hidden)


class MotionEncoder(nn.Module):
    """The flow and what is seen there, as features with the flow itself behind them."""

    def __init__(self):
        super().__init__()
        self.convcorr1 = convolution(LEVELS * WINDOW, 256, 1, 1, nn.ReLU())
        self.convcorr2 = convolution(256, 192, 3, 1, nn.ReLU())
        self.convflow1 = convolution(2, 128, 7, 1, nn.ReLU())
        self.convflow2 = convolution(128, 64, 3, 1, nn.ReLU())
        self.conv = convolution(192 + 64, MOTION - 2, 3, 1, nn.ReLU())

    def forward(self, flow: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.convcorr2(self.convcorr1(seen)), self.convflow2(self.convflow1(flow))], dim=1)
        return torch.cat([self.conv(both), flow], dim=1)


class Recurrent(nn.Module):
    """Two gated recurrent units, one that looks along rows and one along columns."""

    def __init__(self):
        super().__init__()
        self.convgru1, self.convgru2 = GRU((1, 5)), GRU((5, 1))

    def forward(self, hidden: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return self.convgru2(self.convgru1(hidden, told), told)


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) whose linear maps are convolutions."""

    def __init__(self, kernel: tuple[int, int]):
        super().__init__()
        self.convz, self.convr, self.convq = (
            nn.Conv2d(HIDDEN + CONTEXT + MOTION, HIDDEN, kernel, padding=tuple(side // 2 for side in kernel)) for _ in "zrq"
        )

    def forward(self, hidden: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        both = torch.cat([hidden, told], dim=1)
        update, reset = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        new = self.convq(torch.cat([reset * hidden, told], dim=1)).tanh()
        return (1 - update) * hidden + update * new


class FlowHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.conv1(hidden)))


class MaskPredictor(nn.Module):
    """How each of the 64 places that one becomes is made of the nine around it, by logits [B, 9 * 64, h, w]."""

    SCALE = 0.25  # that balances its gradients with the flow's

    def __init__(self):
        super().__init__()
        self.convrelu = convolution(HIDDEN, 256, 3, 1, nn.ReLU())
        self.conv = nn.Conv2d(256, 9 * SHRINK**2, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.SCALE * self.conv(self.convrelu(hidden))
