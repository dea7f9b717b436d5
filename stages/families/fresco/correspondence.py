"""Correspondence between the frames of a batch: masks of newly visible tokens, and trajectories through the frames.

After FRESCO (arXiv:2403.12962). Flows are in pixels, x first; `backward[i]` leads from frame i + 1 to frame i, and is given
at the pixels of frame i + 1. An occlusion is 1 where the flow is unreliable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MASK_SCALES = (8, 16, 32)  # pixels per token, in x and y
TRAJECTORY_SCALES = (8, 16)


@dataclass(frozen=True)
class Trajectories:
    """P paths through N frames at one scale, as many as a frame has tokens; each token lies on exactly one path.

    `forward` int64 [N, P]: the token of frame n on path p. `backward` int64 [N, P]: the path of token p of frame n.
    `connected` bool [P, N, N]: whether path p shows the same thing in two frames.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    connected: torch.Tensor


def downscale(images: torch.Tensor, scale: int) -> torch.Tensor:
    """Images [N, C, H, W] at one token per `scale` pixels in x and y, [N, C, h, w]."""
    return F.interpolate(images, scale_factor=1 / scale, mode="bilinear")


def token_masks(occlusions: torch.Tensor, scale: int) -> torch.Tensor:
    """Tokens that show something new, bool [N, P]: all of the first frame, then those that the frame before does not show.

    `occlusions` [N - 1, H, W], float 0 or 1, are those of the backward flow between neighbours.
    """
    height, width = (side // scale for side in occlusions.shape[1:])
    first = torch.ones(1, height * width, dtype=torch.bool, device=occlusions.device)
    if not len(occlusions):
        return first
    return torch.cat([first, downscale(occlusions[:, None], scale)[:, 0].flatten(1) > 0.5])


def trajectories(backward: torch.Tensor, occlusions: torch.Tensor, images: torch.Tensor, scale: int) -> Trajectories:
    """Link the tokens of neighbouring frames by flow, and chain the links to paths.

    `backward` [N - 1, 2, H, W] and `occlusions` [N - 1, H, W] are those of neighbours, `images` [N, 3, H, W]. If several
    tokens lead to one, the most similar in colour is linked. Tokens that no flow reaches are linked to the remaining ones:
    every token is on one path then, and the path is disconnected there.
    """
    colours = downscale(images, scale).flatten(2)  # [N, 3, P]
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    if len(backward):
        reliable = downscale(occlusions[:, None], scale)[:, 0].flatten(1) <= 0.5
        steps = list(zip(downscale(backward / scale, scale), reliable))
    tokens = torch.arange(colours.shape[2], device=colours.device)
    paths = [tokens]
    connected = torch.ones(len(tokens), len(colours), len(colours), dtype=torch.bool, device=colours.device)
    for pair, (flow, valid) in enumerate(steps):
        links, linked = link(flow, valid, colours[pair], colours[pair + 1])
        broken = ~linked[paths[-1]]
        connected[broken, : pair + 1, pair + 1 :] = False
        connected[broken, pair + 1 :, : pair + 1] = False
        paths.append(links[paths[-1]])
    forward = torch.stack(paths)
    return Trajectories(forward, torch.argsort(forward, dim=1), connected)


def link(
    flow: torch.Tensor, reliable: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A bijection of a frame's P tokens onto those of the next, int64 [P], and where it follows the flow, bool [P].

    `flow` [2, h, w] leads from the next frame back, in tokens; `reliable` bool [P]; colours `before` and `after` [3, P].
    """
    height, width = flow.shape[1:]
    y, x = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in (height, width)), indexing="ij")
    x, y = torch.round(x + flow[0]), torch.round(y + flow[1])
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).flatten()
    sources = torch.nonzero(inside & reliable).flatten()
    targets = (y * width + x).long().flatten()[sources]
    errors = ((after[:, sources] - before[:, targets]) ** 2).mean(0)
    order = torch.argsort(errors, stable=True)
    order = order[torch.argsort(targets[order], stable=True)]  # by target, and for one target by error
    sources, targets = sources[order], targets[order]
    best = torch.ones_like(targets, dtype=torch.bool)
    best[1:] = targets[1:] != targets[:-1]
    sources, targets = sources[best], targets[best]
    links = torch.empty(height * width, dtype=torch.long, device=flow.device)
    linked, used = torch.zeros_like(links, dtype=torch.bool), torch.zeros_like(links, dtype=torch.bool)
    links[targets], linked[targets], used[sources] = sources, True, True
    links[~linked] = torch.nonzero(~used).flatten()
    return links, linked
