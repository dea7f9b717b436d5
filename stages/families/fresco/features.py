"""The feature optimisation of FRESCO (arXiv:2403.12962), on the inputs of a U-Net's up blocks.

Features follow the optical flow (temporal loss) and keep the self-similarity of the input frames (Gram loss). They are
[2 N, C, h, w]: N frames without and N with the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROWS = 1024  # of a Gram matrix that are in memory at once
EPSILON = 1e-5


@dataclass(frozen=True)
class Motion:
    """Optical flow between neighbours of a cycle of N frames (the first follows the last), in pixels, x first.

    `forward` [N, 2, H, W] is given at frame n, `backward` [N, 2, H, W] at frame n + 1. Occlusions [N, H, W] are 1 where the
    flow is unreliable.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    occluded_forward: torch.Tensor
    occluded_backward: torch.Tensor

    def resize(self, height: int, width: int) -> Motion:
        """The flow at another size, in the pixels of that size."""
        scale = self.forward.shape[2] / height
        flows = (F.interpolate(flow, (height, width), mode="bilinear") / scale for flow in (self.forward, self.backward))
        occlusions = (
            F.adaptive_max_pool2d(occluded[:, None], (height, width))[:, 0]
            for occluded in (self.occluded_forward, self.occluded_backward)
        )
        return Motion(*flows, *occlusions)


def warp(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample images [N, C, h, w] at the targets of the flow [N, 2, h, w]; bilinear, 0 outside."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in (height, width)), indexing="ij")
    x = 2 * (x + flow[:, 0]) / max(width - 1, 1) - 1
    y = 2 * (y + flow[:, 1]) / max(height - 1, 1) - 1
    return F.grid_sample(images, torch.stack([x, y], dim=3), align_corners=True)


def unit_tokens(features: torch.Tensor) -> torch.Tensor:
    """Features [B, C, h, w] as tokens of length 1, [B, h * w, C]."""
    return F.normalize(to_tokens(features), dim=2)


def to_tokens(features: torch.Tensor) -> torch.Tensor:
    """Features [B, C, h, w] as tokens, [B, h * w, C]."""
    return features.flatten(2).transpose(1, 2)


class Reference:
    """The self-similarity of the input frames, whose unit tokens are [2 N, P, C]: a Gram matrix [P, P] for each.

    The matrices of as many frames as fit in `room` bytes are kept, those of the others are computed whenever they are asked
    for. The values are the same.
    """

    def __init__(self, tokens: torch.Tensor, room: float = 0):
        self.tokens = tokens
        size = tokens.shape[1] ** 2 * tokens.element_size()
        self.kept = [torch.cat([*self._computed(frame)]) for frame in range(min(len(tokens), int(room // size)))]

    def rows(self, frame: int) -> Iterator[torch.Tensor]:
        """The Gram matrix of a frame, `ROWS` rows at a time."""
        return iter(self.kept[frame].split(ROWS)) if frame < len(self.kept) else self._computed(frame)

    def _computed(self, frame: int) -> Iterator[torch.Tensor]:
        tokens = self.tokens[frame]
        return (rows @ tokens.T for rows in tokens.split(ROWS))


def optimise(
    features: torch.Tensor,
    reference: Reference,
    motion: Motion,
    iterations: int = 20,
    rate: float = 0.2,
    gram_weight: float = 100.0,
) -> torch.Tensor:
    """Features [2 N, C, h, w] after `iterations` steps of Adam; `rate` is its learning rate.

    Each channel of each frame keeps its mean and standard deviation.
    """
    motion = motion.resize(*features.shape[2:])
    optimised = features.detach().float().clone()
    adam = torch.optim.Adam([optimised], lr=rate, fused=True)
    weight = optimised.new_ones(()) / len(optimised) * gram_weight  # rounded as by autograd
    for _ in range(iterations):
        # One half, and one frame at a time: less is in memory at once.
        gradient = torch.cat([temporal_gradient(half, motion) / 2 for half in optimised.chunk(2)])
        for frame, (row, slope) in enumerate(zip(optimised, gradient)):
            slope += gram_gradient(row, reference.rows(frame), weight)
        optimised.grad = gradient
        adam.step()
    return adain(optimised, features.float()).to(features)


def temporal_loss(features: torch.Tensor, motion: Motion) -> torch.Tensor:
    """Mean absolute difference of N frames [N, C, h, w] and their warped neighbours, where the flow is reliable."""
    following = features.roll(-1, dims=0)
    visible_backward, visible_forward = 1 - motion.occluded_backward[:, None], 1 - motion.occluded_forward[:, None]
    error = (following - warp(features, motion.backward)).abs() * visible_backward
    error = error + (features - warp(following, motion.forward)).abs() * visible_forward
    return 2 * error.mean()


@torch.enable_grad()
def temporal_gradient(features: torch.Tensor, motion: Motion) -> torch.Tensor:
    """Gradient of `temporal_loss` [N, C, h, w]."""
    features = features.detach().requires_grad_()
    return torch.autograd.grad(temporal_loss(features, motion), features)[0]


def gram_gradient(features: torch.Tensor, reference: Iterable[torch.Tensor], weight: torch.Tensor | float) -> torch.Tensor:
    """Gradient [C, h, w] of `weight` mean |X X^T - G|, for features [C, h, w] whose tokens of length 1 are X [P, C].

    G, the rows of `reference`, is symmetric, and so is S, the sign of the difference. So the gradient at X is
    D = (S + S^T) X = 2 S X over the number of elements P^2 (derivative of a trace, Petersen and Pedersen, The Matrix
    Cookbook, 2012). That at the tokens f = |f| x behind X is (D - x (x . D)) / |f|, token by token: the projection along the
    sphere. No Gram matrix is whole in memory.
    """
    tokens = to_tokens(features[None])[0]
    # Not by `unit_tokens`: where features equal their reference, the first step follows rounding errors, here as upstream.
    length = tokens.square().sum(1, keepdim=True).sqrt()
    unit = tokens / length
    slope = torch.empty_like(unit)
    for own, wanted, out in zip(unit.split(ROWS), reference, slope.split(ROWS)):
        difference = own @ unit.T
        difference -= wanted
        out[:] = 2 * (difference.sign_() @ unit)
    slope *= weight / len(unit) ** 2
    # Each |f| divides on its own, as autograd has it, so that results agree with its to the bit.
    slope = slope / length - tokens * ((slope * (unit / length)).sum(1, keepdim=True) / length)
    return slope.T.reshape(features.shape)


def adain(features: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """AdaIN (arXiv:1703.06868): `features` with the mean and standard deviation of `style` per row and channel.

    Both are [B, C, h, w].
    """

    def statistics(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tensor.mean((2, 3), keepdim=True), (tensor.var((2, 3), keepdim=True) + EPSILON).sqrt()

    (mean, std), (style_mean, style_std) = statistics(features), statistics(style)
    return (features - mean) / std * style_std + style_mean
