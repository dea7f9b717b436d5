"""Which places of a batch of frames show the same thing: masks of tokens that are new, and trajectories through the frames.

After FRESCO (arXiv:2403.12962). Flows are in pixels, x first; `backward[i]` leads from frame i + 1 to frame i, and is given
at the pixels of frame i + 1. An occlusion is 1 where the flow cannot be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MASK_SCALES = (8, 16, 32)  # pixels per token, in x and y
TRAJECTORY_SCALES = (8, 16)


@dataclass(frozen=True)
class Trajectories:
    """Paths through the frames at one scale, as many as a frame has tokens (P); each token lies on exactly one.

    `forward` int64 [N, P]: the token of frame n on path p. `backward` int64 [N, P]: the path of token p of frame n.
    `connected` bool [P, N, N]: whether path p shows the same thing in two frames.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    connected: torch.Tensor


def reduced(images: torch.Tensor, scale: int) -> torch.Tensor:
    """Images [N, C, H, W] at a token per `scale` pixels, [N, C, h, w]."""
    return F.interpolate(images, scale_factor=1 / scale, mode="bilinear")


def token_masks(occlusions: torch.Tensor, scale: int) -> torch.Tensor:
    """Which tokens show what no frame before has shown, bool [N, P]: all of the first, then those that are occluded.

    `occlusions` [N - 1, H, W], float 0 or 1, are those of the backward flow of neighbours.
    """
    height, width = (side // scale for side in occlusions.shape[1:])
    first = torch.ones(1, height * width, dtype=torch.bool, device=occlusions.device)
    if not len(occlusions):
        return first
    return torch.cat([first, reduced(occlusions[:, None], scale)[:, 0].flatten(1) > 0.5])


def trajectories(backward: torch.Tensor, occlusions: torch.Tensor, images: torch.Tensor, scale: int) -> Trajectories:
    """Link the tokens of neighbouring frames by flow and make paths of the links.

    `backward` [N - 1, 2, H, W] and `occlusions` [N - 1, H, W] are those of neighbours, `images` [N, 3, H, W]. Of several
    tokens that lead to one the most alike in colour is taken. What no flow reaches is linked to what is left over, so that
    every token is on one path, and the path is cut there.
    """
    colours = reduced(images, scale).flatten(2)  # [N, 3, P]
    flow, trusted = (), ()
    if len(backward):
        flow = reduced(backward / scale, scale)
        trusted = reduced(occlusions[:, None], scale)[:, 0].flatten(1) <= 0.5
    tokens = torch.arange(colours.shape[2], device=colours.device)
    paths = [tokens]
    connected = torch.ones(len(tokens), len(colours), len(colours), dtype=torch.bool, device=colours.device)
    for pair, (step, valid) in enumerate(zip(flow, trusted)):
        links, linked = link(step, valid, colours[pair], colours[pair + 1])
        torn = ~linked[paths[-1]]
        connected[torn, : pair + 1, pair + 1 :] = False
        connected[torn, pair + 1 :, : pair + 1] = False
        paths.append(links[paths[-1]])
    forward = torch.stack(paths)
    return Trajectories(forward, torch.argsort(forward, dim=1), connected)


def link(
    flow: torch.Tensor, trusted: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A bijection of a frame's P tokens onto those of the next, int64 [P], and where it follows the flow, bool [P].

    `flow` [2, h, w] leads from the next frame back, in tokens; `trusted` bool [P]; colours `before` and `after` [3, P].
    """
    height, width = flow.shape[1:]
    y, x = torch.meshgrid(*(torch.arange(side, device=flow.device) for side in (height, width)), indexing="ij")
    x, y = torch.round(x + flow[0]), torch.round(y + flow[1])
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).flatten()
    sources = torch.nonzero(inside & trusted).flatten()
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
