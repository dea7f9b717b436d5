"""RAFT (Teed and Deng 2020, arXiv:2003.12039): optical flow by a network, its weights named as in torchvision's raft_large.

Both images are encoded at an eighth of their size. Their all-pairs correlation is kept at four scales. A recurrent unit
looks up the correlation around the current flow and refines the flow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from stages.families.fresco.features import to_tokens
from stages.families.shared.pixels import to_float
from stages.media.flow import grid

STRIDE = 8  # pixels per feature; the sides of an image are multiples of it
LEVELS, RADIUS = 4, 4  # of the correlation pyramid, and of the window looked up in each level
HIDDEN, CONTEXT, MOTION = 128, 128, 128  # channels
UPDATES = 12  # refinements of the flow, torchvision's default
WINDOW = (2 * RADIUS + 1) ** 2


class RAFT(nn.Module):
    """Optical flow from one image to another."""

    def __init__(self):
        super().__init__()
        self.feature_encoder = Encoder(nn.InstanceNorm2d)
        self.context_encoder = Encoder(nn.BatchNorm2d)
        self.update_block = UpdateBlock()
        self.mask_predictor = MaskPredictor()

    @classmethod
    def load(cls, folder: Path) -> RAFT:
        """Load the safetensors file of a folder, in eval mode."""
        (path,) = folder.glob("*.safetensors")
        net = cls()
        net.load_state_dict(load_file(path))
        return net.eval()

    @torch.no_grad()
    def correspondence(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The map of `a` into `b`, both RGB, uint8 [H, W, 3]: float32 [H, W, 2], places (x, y) in pixels."""
        device = next(self.parameters()).device
        images = (to_float(torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None]) for rgb in (a, b))
        return grid(a.shape) + self(*images)[0].permute(1, 2, 0).cpu().numpy()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Flow [B, 2, H, W] (x, y), in pixels, from `a` to `b`, both [B, 3, H, W] in -1..1."""
        features = self.feature_encoder(torch.cat([a, b])).chunk(2)
        pyramid = correlation_pyramid(*features)
        hidden, context = self.context_encoder(a).split([HIDDEN, CONTEXT], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        places = torch.from_numpy(grid(hidden.shape[2:])).permute(2, 0, 1).expand(len(a), -1, -1, -1).to(a.device)
        flow = torch.zeros_like(places)
        for _ in range(UPDATES):
            correlation = look_up(pyramid, places + flow)
            hidden, change = self.update_block(hidden, context, correlation, flow)
            flow = flow + change
        return convex_upsample(flow, self.mask_predictor(hidden))


def correlation_pyramid(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Correlation of each place of `a` with all of `b`, both [B, C, h, w], at each scale: [B h w, 1, h', w']."""
    batch, channels, height, width = a.shape
    products = to_tokens(a) @ b.flatten(2) / channels**0.5
    levels = [products.reshape(batch * height * width, 1, height, width)]
    for _ in range(LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def look_up(levels: list[torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """Correlation in a window around the places `at` (x, y) [B, 2, h, w], at each scale: [B, 4 * 81, h, w]; 0 outside."""
    batch, _, height, width = at.shape
    reach = torch.arange(-RADIUS, RADIUS + 1, device=at.device, dtype=at.dtype)
    around = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), dim=-1)  # the published weights expect columns first
    centers = at.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    windows = []
    for number, level in enumerate(levels):
        size = torch.tensor([level.shape[3] - 1, level.shape[2] - 1], device=at.device, dtype=at.dtype)
        window = 2 * (centers / 2**number + around) / size - 1
        windows.append(F.grid_sample(level, window, align_corners=True).reshape(batch, height, width, WINDOW))
    return torch.cat(windows, dim=-1).permute(0, 3, 1, 2)


def convex_upsample(flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A flow [B, 2, h, w] at eight times its size, in the larger pixels: [B, 2, 8 h, 8 w].

    Each of the 8x8 sub-pixels is a weighted mean of the 3x3 coarse neighbours; `mask` [B, 9 * 64, h, w] has the logits.
    """
    batch, _, height, width = flow.shape
    weights = mask.view(batch, 1, 9, STRIDE, STRIDE, height, width).softmax(dim=2)
    around = F.unfold(STRIDE * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    fine = (weights * around).sum(dim=2)  # [B, 2, 8, 8, h, w]
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, STRIDE * height, STRIDE * width)


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *rest: nn.Module) -> nn.Sequential:
    """A convolution that keeps the size (but for `stride`), followed by `rest`."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2), *rest)


class Encoder(nn.Module):
    """Images [B, 3, H, W] to features [B, 256, H / 8, W / 8]."""

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
    """A residual block of two convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: type[nn.Module]):
        super().__init__()
        self.convnormrelu1 = convolution(in_channels, out_channels, 3, stride, norm(out_channels), nn.ReLU())
        self.convnormrelu2 = convolution(out_channels, out_channels, 3, 1, norm(out_channels), nn.ReLU())
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = convolution(in_channels, out_channels, 1, stride, norm(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.downsample(x) + self.convnormrelu2(self.convnormrelu1(x)))


class UpdateBlock(nn.Module):
    """One refinement of the flow."""

    def __init__(self):
        super().__init__()
        self.motion_encoder = MotionEncoder()
        self.recurrent_block = RecurrentBlock()
        self.flow_head = FlowHead()

    def forward(
        self, hidden: torch.Tensor, context: torch.Tensor, correlation: torch.Tensor, flow: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next `hidden` [B, 128, h, w] and the change of the flow [B, 2, h, w]."""
        inputs = torch.cat([context, self.motion_encoder(flow, correlation)], dim=1)
        hidden = self.recurrent_block(hidden, inputs)
        return hidden, self.flow_head(hidden)


class MotionEncoder(nn.Module):
    """Flow [B, 2, h, w] and correlation [B, 4 * 81, h, w] to features [B, 128, h, w]; the last two channels are the flow."""

    def __init__(self):
        super().__init__()
        self.convcorr1 = convolution(LEVELS * WINDOW, 256, 1, 1, nn.ReLU())
        self.convcorr2 = convolution(256, 192, 3, 1, nn.ReLU())
        self.convflow1 = convolution(2, 128, 7, 1, nn.ReLU())
        self.convflow2 = convolution(128, 64, 3, 1, nn.ReLU())
        self.conv = convolution(192 + 64, MOTION - 2, 3, 1, nn.ReLU())

    def forward(self, flow: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.convcorr2(self.convcorr1(correlation)), self.convflow2(self.convflow1(flow))], dim=1)
        return torch.cat([self.conv(both), flow], dim=1)


class RecurrentBlock(nn.Module):
    """Two gated recurrent units, one along rows and one along columns."""

    def __init__(self):
        super().__init__()
        self.convgru1, self.convgru2 = GRU((1, 5)), GRU((5, 1))

    def forward(self, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return self.convgru2(self.convgru1(hidden, inputs), inputs)


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) whose linear maps are convolutions."""

    def __init__(self, kernel: tuple[int, int]):
        super().__init__()
        self.convz, self.convr, self.convq = (
            nn.Conv2d(HIDDEN + CONTEXT + MOTION, HIDDEN, kernel, padding=(kernel[0] // 2, kernel[1] // 2)) for _ in "zrq"
        )

    def forward(self, hidden: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        both = torch.cat([hidden, inputs], dim=1)
        update, reset = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        new = self.convq(torch.cat([reset * hidden, inputs], dim=1)).tanh()
        return (1 - update) * hidden + update * new


class FlowHead(nn.Module):
    """Hidden state [B, 128, h, w] to the change of the flow [B, 2, h, w]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.conv1(hidden)))


class MaskPredictor(nn.Module):
    """Hidden state [B, 128, h, w] to the logits [B, 9 * 64, h, w] of `convex_upsample`."""

    SCALE = 0.25  # balances the gradients with those of the flow

    def __init__(self):
        super().__init__()
        self.convrelu = convolution(HIDDEN, 256, 3, 1, nn.ReLU())
        self.conv = nn.Conv2d(256, 9 * STRIDE**2, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.SCALE * self.conv(self.convrelu(hidden))
