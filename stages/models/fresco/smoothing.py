"""A background that stays the same from keyframe to keyframe: where nothing is in front and the flow can be trusted, a frame
takes over what the one before shows (arXiv:2403.12962, with masks of what is in front in the place of a saliency)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from stages.models.fresco.features import Motion, warped
from stages.models.shared.picture_vae import decoded, encoded

AROUND_FRONT, AROUND_OCCLUDED = 7, 13  # pixels across that masks grow by: what is in front, what cannot be followed


@dataclass(frozen=True)
class Background:
    """Of N keyframes: `behind` float32 [N, H, W], 1 where a frame shows its background; how they move; and the VAE, by which
    latents are pictures."""

    behind: torch.Tensor
    motion: Motion
    vae: AutoencoderKL

    def of_features(self, features: torch.Tensor) -> torch.Tensor:
        """Features [2 N, C, h, w], each half with one background."""
        size = features.shape[2:]
        motion, behind = self.motion.reduced(*size), -F.adaptive_max_pool2d(-self.behind[:, None], size)[:, 0]
        return torch.cat([fused(half.float(), motion, behind) for half in features.chunk(2)]).to(features)

    def of_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [N, 4, h, w] whose pictures have one background; what cannot be followed grows, or outlines would stay."""
        motion = self.motion
        occlusions = (grown(occluded, AROUND_OCCLUDED) for occluded in (motion.occluded_forward, motion.occluded_backward))
        pictures = torch.cat(list(decoded(self.vae, latents.transpose(0, 1)[None])))
        pictures = fused(pictures, Motion(motion.forward, motion.backward, *occlusions), self.behind)
        return torch.cat([encoded(self.vae, picture) for picture in pictures.split(1)])


def behind(masks: torch.Tensor) -> torch.Tensor:
    """1 where a frame shows its background, 0 at what is in front and close to it; of masks float32 [N, H, W] in 0..1."""
    return 1 - grown(masks, AROUND_FRONT)


def grown(masks: torch.Tensor, size: int) -> torch.Tensor:
    return F.max_pool2d(masks[:, None], size, stride=1, padding=size // 2)[:, 0]


def fused(images: torch.Tensor, motion: Motion, behind: torch.Tensor) -> torch.Tensor:
    """Images or features [N, C, h, w], the background of each taken from the one before; at the end, of the last one from
    the first, so that no fault grows along the frames.

    `motion` is of that size, `behind` [N, h, w] is 1 where a frame shows its background.
    """
    made = list(images.split(1))
    ways = [
        *((n, n + 1, motion.backward[n], motion.occluded_backward[n]) for n in range(len(made) - 1)),
        (0, len(made) - 1, motion.forward[-1], motion.occluded_forward[-1]),
    ]
    for source, target, flow, occluded in ways:
        there = warped(behind[source][None, None], flow[None])
        taken = (1 - occluded) * behind[target] * there
        made[target] = made[target] * (1 - taken) + warped(made[source], flow[None]) * taken
    return torch.cat(made)
