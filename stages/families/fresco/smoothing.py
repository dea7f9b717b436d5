"""Background smoothing (arXiv:2403.12962, with masks of the foreground instead of saliency maps).

Where a keyframe shows its background and the flow is reliable, it takes over the background of the keyframe before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from stages.families.fresco.features import Motion, warp
from stages.families.shared.sd_vae import decode_frames, encode_images

FOREGROUND_DILATION, OCCLUSION_DILATION = 7, 13  # sides of the dilation's window, in pixels


@dataclass(frozen=True)
class Background:
    """The background of N keyframes.

    `mask` float32 [N, H, W] is 1 where a frame shows its background. `motion` is the flow around the batch. The VAE turns
    latents into images and back.
    """

    mask: torch.Tensor
    motion: Motion
    vae: AutoencoderKL

    def blend_features(self, features: torch.Tensor) -> torch.Tensor:
        """Give features [2 N, C, h, w] one background in each half."""
        size = features.shape[2:]
        motion, mask = self.motion.resize(*size), -F.adaptive_max_pool2d(-self.mask[:, None], size)[:, 0]
        return torch.cat([blend_background(half.float(), motion, mask) for half in features.chunk(2)]).to(features)

    def blend_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Give the images behind latents [N, 4, h, w] one background.

        Occlusions are dilated first: outlines of what moved would remain otherwise.
        """
        motion = self.motion
        occlusions = (dilate(mask, OCCLUSION_DILATION) for mask in (motion.occluded_forward, motion.occluded_backward))
        images = torch.cat(list(decode_frames(self.vae, latents.transpose(0, 1)[None])))
        images = blend_background(images, Motion(motion.forward, motion.backward, *occlusions), self.mask)
        return torch.cat([encode_images(self.vae, image) for image in images.split(1)])


def background_mask(foreground: torch.Tensor) -> torch.Tensor:
    """1 for background, 0 for the foreground and what is close to it; `foreground` float32 [N, H, W] in 0..1."""
    return 1 - dilate(foreground, FOREGROUND_DILATION)


def dilate(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Maximum of masks [N, H, W] over a window of `size` pixels (odd) around each pixel."""
    return F.max_pool2d(masks[:, None], size, stride=1, padding=size // 2)[:, 0]


def blend_background(images: torch.Tensor, motion: Motion, mask: torch.Tensor) -> torch.Tensor:
    """Take over the background of images or features [N, C, h, w] from frame to frame, along the flow.

    Each frame takes it from the one before. The last frame takes it from the first as well, so that errors do not
    accumulate. `motion` has the size of the images; `mask` [N, h, w] is 1 where a frame shows its background.
    """
    blended = list(images.split(1))
    steps = [
        *((n, n + 1, motion.backward[n], motion.occluded_backward[n]) for n in range(len(blended) - 1)),
        (0, len(blended) - 1, motion.forward[-1], motion.occluded_forward[-1]),
    ]
    for source, target, flow, occluded in steps:
        source_mask = warp(mask[source][None, None], flow[None])
        weight = (1 - occluded) * mask[target] * source_mask
        blended[target] = blended[target] * (1 - weight) + warp(blended[source], flow[None]) * weight
    return torch.cat(blended)
