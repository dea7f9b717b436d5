"""The 3D U-Net of `text2video`: it denoises a whole clip, with cross-attention to the text in every block.

It is the U-Net of Stable Diffusion with temporal layers between the spatial ones (Ho et al. 2022, arXiv:2204.03458; Singer
et al. 2022, arXiv:2209.14792). The spatial layers have the names of diffusers' `UNet2DConditionModel`, so that `inflate` can
copy the weights of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from stages.families.text2video.options import multiples

SPATIAL, TEMPORAL, JOINT = "spatial", "temporal", "joint"
TEMPORAL_START = 0.1  # scale of the initial weights of temporal convolutions: small, since zero learns slowly


class UNet3D(ModelMixin, ConfigMixin):
    """Predicts noise, velocity or clip (as the scheduler's config says) from a noisy clip, timesteps and text states.

    Args:
        attention: for each level, the tokens that self-attention joins: those of a frame ("spatial"), those at a position in
            all frames ("temporal"), both in turn ("spatial+temporal"), or all tokens ("joint").
        head_dim: width of an attention head, of all levels or of each.
        patch_size: patches (t, h, w) of pixels, on which the network works.
        condition_dim: width of a further condition, a vector per clip, that is added to the embedding of the timestep.
        num_frames, sample_size: what the weights were trained on. Any number of frames and size that divides into whole
            patches can be generated.
    """

    conv_in: nn.Module
    time_embedding: nn.Module
    text_embedding: nn.Module
    condition_embedding: nn.Module | None
    down_blocks: Any  # nn.ModuleList of Block
    mid_block: Block
    up_blocks: Any  # nn.ModuleList of Block

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4),
        layers_per_block: int = 2,
        attention: Sequence[str] = (TEMPORAL, f"{SPATIAL}+{TEMPORAL}", f"{SPATIAL}+{TEMPORAL}"),
        head_dim: int | Sequence[int] = 32,
        text_dim: int = 768,
        patch_size: Sequence[int] = (1, 1, 1),
        feed_forward_mult: int = 4,
        condition_dim: int | None = None,
        num_frames: int = 16,
        sample_size: int = 64,
    ):
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        inside, embedding = in_channels * math.prod(patch_size), 4 * model_channels
        head_dims = [head_dim] * len(widths) if isinstance(head_dim, int) else list(head_dim)
        settings = {"embedding": embedding, "text_dim": text_dim, "mult": feed_forward_mult}
        self.conv_in = nn.Conv3d(inside, widths[0], (1, 3, 3), padding=(0, 1, 1))
        self.time_embedding = TimeEmbedding(model_channels, embedding)
        self.text_embedding = nn.Linear(text_dim, embedding)
        self.condition_embedding = nn.Linear(condition_dim, embedding) if condition_dim else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            channels = [(width, out), *[(out, out)] * (layers_per_block - 1)]
            block = Block(channels, attention[level], head_dim=head_dims[level], **settings)
            block.downsamplers = nn.ModuleList([] if last else [Downsample(out)])
            self.down_blocks.append(block)
            skips += [out] * (layers_per_block + (not last))
            width = out
        self.mid_block = Block([(width, width)] * 2, attention[-1], attentions=1, head_dim=head_dims[-1], **settings)
        for level in reversed(range(len(widths))):
            channels = []
            for _ in range(layers_per_block + 1):
                channels.append((width + skips.pop(), widths[level]))
                width = widths[level]
            block = Block(channels, attention[level], head_dim=head_dims[level], **settings)
            block.upsamplers = nn.ModuleList([Upsample(width)] if level else [])
            self.up_blocks.append(block)
        self.conv_norm_out = norm(width)
        self.conv_out = nn.Conv3d(width, inside, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.conv_out.weight)

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The prediction [B, C, T, H, W] for a noisy clip `x` of that shape, timesteps [B] and text states [B, L, D].

        `condition` is [B, condition_dim]. Raises ValueError if the network has a condition and none is given.
        """
        embedding = self.time_embedding(timestep.expand(len(x))) + self.text_embedding(text.mean(dim=1))
        if self.condition_embedding is not None:
            if condition is None:
                raise ValueError(f"condition_dim is {self.config.condition_dim} and no condition is given")
            embedding = embedding + self.condition_embedding(condition)
        h = self.conv_in(patchify(x, self.config.patch_size))
        skips = [h]
        for block in self.down_blocks:
            for resnet, attention in zip(block.resnets, block.attentions, strict=True):
                h = attention(resnet(h, embedding), text)
                skips.append(h)
            for down in block.downsamplers:
                h = down(h)
                skips.append(h)
        h = self.mid_block.attentions[0](self.mid_block.resnets[0](h, embedding), text)
        h = self.mid_block.resnets[1](h, embedding)
        for block in self.up_blocks:
            for resnet, attention in zip(block.resnets, block.attentions, strict=True):
                h = attention(resnet(torch.cat([h, skips.pop()], dim=1), embedding), text)
            for up in block.upsamplers:
                h = up(h)
        return unpatchify(self.conv_out(F.silu(self.conv_norm_out(h))), self.config.patch_size)

    @property
    def multiple(self) -> tuple[int, int]:
        """Multiples that the frames and the sides of a clip must be."""
        return multiples(self.config)


class Block(nn.Module):
    """The residual blocks and transformers of a level, in the order of use, with its down- or upsamplers.

    `channels` are the input and output channels of each residual block.
    """

    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(
        self, channels: Sequence[tuple[int, int]], kind: str, embedding: int, attentions: int | None = None, **attention: int
    ):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(i, o, embedding) for i, o in channels)
        self.attentions = nn.ModuleList(Transformer(o, kind, **attention) for _, o in channels[:attentions])


class Resnet(nn.Module):
    """Two spatial convolutions with the timestep embedding between them, then a temporal one, on x [B, C, T, H, W]."""

    def __init__(self, channels: int, out: int, embedding: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv3d(channels, out, (1, 3, 3), padding=(0, 1, 1))
        self.time_emb_proj = nn.Linear(embedding, out)
        self.norm2, self.conv2 = norm(out), nn.Conv3d(out, out, (1, 3, 3), padding=(0, 1, 1))
        self.conv_shortcut = nn.Conv3d(channels, out, 1) if channels != out else nn.Identity()
        self.temporal_norm, self.temporal_conv = norm(out), nn.Conv3d(out, out, (3, 1, 1), padding=(1, 0, 0))
        with torch.no_grad():
            self.temporal_conv.weight.mul_(TEMPORAL_START)
        if self.temporal_conv.bias is not None:
            nn.init.zeros_(self.temporal_conv.bias)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(embedding))[:, :, None, None, None]
        h = self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)
        return h + self.temporal_conv(F.silu(self.temporal_norm(h)))


class Transformer(nn.Module):
    """Spatial or joint self-attention, temporal self-attention, cross-attention to the text, and a feed-forward layer."""

    def __init__(self, channels: int, kind: str, text_dim: int, head_dim: int, mult: int):
        super().__init__()
        self.kinds = kind.split("+")
        if unknown := set(self.kinds) - {SPATIAL, TEMPORAL, JOINT}:
            raise ValueError(f"attention {unknown.pop()!r} is not {SPATIAL}, {TEMPORAL} or {JOINT}")
        if self.kinds != [TEMPORAL]:
            self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, channels, head_dim)
        if TEMPORAL in self.kinds:
            self.temporal_norm, self.temporal_attn = nn.LayerNorm(channels), Attention(channels, channels, head_dim)
        self.norm2, self.attn2 = nn.LayerNorm(channels), Attention(channels, text_dim, head_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = nn.Sequential(nn.Linear(channels, mult * channels), nn.GELU(), nn.Linear(mult * channels, channels))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        b, c, t, h, w = x.shape
        x = x.permute(0, 2, 3, 4, 1)  # [B, T, H, W, C]
        position = position_embedding((t, h, w), c).to(x)
        if JOINT in self.kinds:
            x = x + self.attn1((self.norm1(x) + position).reshape(b, t * h * w, c)).view(b, t, h, w, c)
        if SPATIAL in self.kinds:
            x = x + self.attn1((self.norm1(x) + position).reshape(b * t, h * w, c)).view(b, t, h, w, c)
        if TEMPORAL in self.kinds:
            frames = (self.temporal_norm(x) + position).permute(0, 2, 3, 1, 4).reshape(b * h * w, t, c)
            x = x + self.temporal_attn(frames).view(b, h, w, t, c).permute(0, 3, 1, 2, 4)
        x = x.reshape(b, t * h * w, c)
        x = x + self.attn2(self.norm2(x), text)
        x = x + self.ff(self.norm3(x))
        return x.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class Attention(nn.Module):
    """Multi-head attention of tokens [B, N, C] to a context [B, M, D], by default to themselves."""

    def __init__(self, channels: int, context: int, head_dim: int):
        super().__init__()
        self.heads = max(1, channels // head_dim)
        if channels % self.heads:
            raise ValueError(f"head_dim {head_dim} does not divide {channels} channels into heads of equal width")
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, channels, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep, then two linear layers."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.channels = channels
        self.linear_1, self.linear_2 = nn.Linear(channels, embedding), nn.Linear(embedding, embedding)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        waves = sinusoids(timestep.float(), self.channels).to(self.linear_1.weight)
        return self.linear_2(F.silu(self.linear_1(waves)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups, or fewer so that a group has at least four channels.

    A group of one channel would lose its mean, and with it what an embedding adds to the channel.
    """
    groups = next(
        groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0 and channels // groups >= min(4, channels)
    )
    return nn.GroupNorm(groups, channels)


def sinusoids(numbers: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoidal embedding [N, channels] of numbers [N] (Vaswani et al. 2017, arXiv:1706.03762)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(channels // 2, device=numbers.device) / (channels // 2))
    angles = numbers[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, channels % 2))


def position_embedding(grid: tuple[int, int, int], channels: int) -> torch.Tensor:
    """Sinusoidal embedding of time, height and width, a third of the channels each: float32 [T, H, W, channels]."""
    third = channels // 3
    parts = []
    for axis, length in enumerate(grid):
        shape = [1, 1, 1, -1]
        shape[axis] = length
        part = sinusoids(torch.arange(length).float(), channels - 2 * third if axis == 0 else third)
        parts.append(part.view(shape).expand(*grid, -1))
    return torch.cat(parts, dim=-1)


def patchify(x: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Move patches (t, h, w) into the channels: [B, C, T, H, W] -> [B, C * t * h * w, T / t, H / h, W / w]."""
    (t, h, w), (b, c, *size) = patch, x.shape
    x = x.view(b, c, size[0] // t, t, size[1] // h, h, size[2] // w, w)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * t * h * w, size[0] // t, size[1] // h, size[2] // w)


def unpatchify(x: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """The inverse of `patchify`."""
    (t, h, w), (b, c, *size) = patch, x.shape
    x = x.view(b, c // (t * h * w), t, h, w, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, -1, size[0] * t, size[1] * h, size[2] * w)


def architecture_of_2d(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of UNet3D with the levels, widths and heads of a 2D U-Net (`UNet2DConditionModel`) with this config.

    Raises ValueError for a 2D U-Net that UNet3D cannot follow.
    """
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    heads = config["attention_head_dim"]  # in diffusers the number of heads in spite of its name
    heads = [heads] * len(widths) if isinstance(heads, int) else heads
    if not isinstance(layers, int) or any(width % widths[0] for width in widths):
        raise ValueError(f"layers_per_block is {layers} and block_out_channels are {list(widths)}")
    with_attention = ["CrossAttn" in kind for kind in config["down_block_types"]]
    with_attention[-1] = True  # the last level says what the block in the middle has
    return {
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "layers_per_block": layers,
        "attention": [f"{SPATIAL}+{TEMPORAL}" if spatial else TEMPORAL for spatial in with_attention],
        "head_dim": [width // number for width, number in zip(widths, heads, strict=True)],
    }


def inflate(unet: UNet3D, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy the weights of a 2D U-Net (`UNet2DConditionModel`); its convolutions then work on each frame by itself.

    Weights without a counterpart of the same name and shape are skipped. Returns the names of the copied weights.
    """
    own, copied = unet.state_dict(), {}
    for name, weight in weights.items():
        name = name.replace(".transformer_blocks.0.", ".")
        if name in own and weight.ndim == 4 and own[name].ndim == 5:
            weight = weight[:, :, None]
        if name in own and own[name].shape == weight.shape:
            copied[name] = weight
    unet.load_state_dict({**own, **copied})
    return sorted(copied)
