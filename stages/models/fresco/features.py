"""The feature optimisation of FRESCO (arXiv:2403.12962): what enters an up block is moved, so that it follows the flow and
is alike in itself where the input frames are. Features are [2 N, C, h, w]: N frames without and N with the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROWS = 1024  # tokens whose likeness to all others is in memory at once
EPSILON = 1e-5


@dataclass(frozen=True)
class Motion:
    """Of N frames in a ring (the last is followed by the first) the flow of each to the next and back, in pixels.

    `forward` [N, 2, H, W] at frame n, `backward` [N, 2, H, W] at frame n + 1; occlusions [N, H, W], 1 where it is not to be
    trusted.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    occluded_forward: torch.Tensor
    occluded_backward: torch.Tensor

    def reduced(self, height: int, width: int) -> Motion:
        """At another size, in its pixels."""
        scale = self.forward.shape[2] / height
        flows = (F.interpolate(flow, (height, width), mode="bilinear") / scale for flow in (self.forward, self.backward))
        occlusions = (
            F.adaptive_max_pool2d(occluded[:, None], (height, width))[:, 0]
            for occluded in (self.occluded_forward, self.occluded_backward)
        )
        return Motion(*flows, *occlusions)


def warped(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Images [N, C, h, w], looked at where the flow [N, 2, h, w] leads, bilinear, 0 outside."""
    height, width = images.shape[2:]
    y, x = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in (height, width)), indexing="ij")
    x = 2 * (x + flow[:, 0]) / max(width - 1, 1) - 1
    y = 2 * (y + flow[:, 1]) / max(height - 1, 1) - 1
    return F.grid_sample(images, torch.stack([x, y], dim=3), align_corners=True)


def directions(features: torch.Tensor) -> torch.Tensor:
    """A token per place, of length 1 over the channels: [B, h * w, C]."""
    return F.normalize(tokens(features), dim=2)


def tokens(features: torch.Tensor) -> torch.Tensor:
    """Features [B, C, h, w] as [B, h * w, C]."""
    return features.flatten(2).transpose(1, 2)


def optimised(
    features: torch.Tensor,
    reference: torch.Tensor,
    motion: Motion,
    iterations: int = 20,
    rate: float = 0.2,
    gram_weight: float = 100.0,
) -> torch.Tensor:
    """Features after `iterations` steps of Adam, with the mean and spread that they had in each channel of each frame.

    `reference` are the `directions` of the features of the input frames, [2 N, h * w, C].
    """
    motion = motion.reduced(*features.shape[2:])
    with torch.enable_grad():
        moved = features.detach().float().clone().requires_grad_()
        adam = torch.optim.Adam([moved], lr=rate, fused=True)
        for _ in range(iterations):
            adam.zero_grad()
            for half in moved.chunk(2):  # a part of the losses after the other, so that little is in memory at once
                (temporal_loss(half, motion) / 2).backward()
            for row, wanted in zip(moved.split(1), reference.split(1)):
                (gram_weight * gram_loss(row, wanted) / len(moved)).backward()
            adam.step()
    return with_statistics(moved.detach(), features.float()).to(features)


def temporal_loss(features: torch.Tensor, motion: Motion) -> torch.Tensor:
    """How far N frames [N, C, h, w] are from their neighbours along the flow, where that can be trusted."""
    following = features.roll(-1, dims=0)
    seen_backward, seen_forward = 1 - motion.occluded_backward[:, None], 1 - motion.occluded_forward[:, None]
    far = (following - warped(features, motion.backward)).abs() * seen_backward
    far = far + (features - warped(following, motion.forward)).abs() * seen_forward
    return 2 * far.mean()


def gram_loss(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How far the likeness of all places of a frame to each other is from that in the reference: the mean of the absolute
    difference of the Gram matrices [B, h * w, h * w], which are never whole in memory."""
    own = tokens(features)
    # Not by `directions`: where features begin as their own reference, the first step is one of rounding, here as upstream.
    own = own / own.square().sum(2, keepdim=True).sqrt()
    return _GramDistance.apply(own, reference) / (len(reference) * reference.shape[1] ** 2)


class _GramDistance(torch.autograd.Function):
    """sum |X X^T - Y Y^T| of tokens X and Y [B, P, C], some rows at a time. A Gram matrix is symmetric, and so is the sign S
    of the difference: the gradient is (S + S^T) X = 2 S X."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gradient, distance = torch.empty_like(x), x.new_zeros(())
        for own, wanted, out in zip(x, y, gradient):
            for start in range(0, len(own), ROWS):
                rows = slice(start, start + ROWS)
                difference = own[rows] @ own.T
                difference -= wanted[rows] @ wanted.T
                distance += difference.abs().sum()
                out[rows] = 2 * (difference.sign_() @ own)
        ctx.save_for_backward(gradient)
        return distance

    @staticmethod
    def backward(ctx, above: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return above * gradient, None


def with_statistics(features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Features [B, C, h, w] with the mean and spread of others in each channel of each row (AdaIN, arXiv:1703.06868)."""

    def statistics(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tensor.mean((2, 3), keepdim=True), (tensor.var((2, 3), keepdim=True) + EPSILON).sqrt()

    (mean, spread), (wanted_mean, wanted_spread) = statistics(features), statistics(like)
    return (features - mean) / spread * wanted_spread + wanted_mean
