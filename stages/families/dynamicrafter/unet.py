"""DynamiCrafter's 3D U-Net (Xing et al. 2023, arXiv:2310.12190).

It denoises all frames of a clip together: spatial blocks work within each frame, temporal blocks across frames at each
place. Every spatial block attends to the prompt and to the image, which has its own tokens for each frame. Module names are
those of the published checkpoints, including their spelling (`temopral_conv`): a checkpoint loads without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

GROUPS = 32
TOKENS_PER_FRAME = 16  # image tokens that a frame has to itself
ROWS = 2**15  # per attention call: temporal attention has a row per place, and CUDA's kernels take at most 65,535
INIT_HEADS = 8  # of the temporal attention after the first convolution


class UNet(ModelMixin, ConfigMixin):
    """Predicts, from a noisy clip and its condition, the noise or the velocity [B, out_channels, T, h, w].

    The defaults are those of the published models; h and w are multiples of 2 ** (levels - 1). `image_scale_learnable`: each
    block has a learned weight `alpha` of the attention to the image, as in the 256 model.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (1, 2, 4),
        num_head_channels: int = 64,
        context_dim: int = 1024,
        image_scale_learnable: bool = False,
    ):
        super().__init__()
        embedding = 4 * model_channels

        def embedder() -> nn.Sequential:
            return nn.Sequential(nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def attentions(width: int) -> list[nn.Module]:
            heads = width // num_head_channels
            return [
                SpatialTransformer(width, heads, num_head_channels, context_dim, image_scale_learnable),
                TemporalTransformer(width, heads, num_head_channels),
            ]

        def block(channels: int, width: int, halvings: int) -> list[nn.Module]:
            return [
                ResBlock(channels, width, embedding),
                *(attentions(width) if 2**halvings in attention_resolutions else []),
            ]

        self.time_embed, self.fps_embedding = embedder(), embedder()
        width = model_channels
        self.input_blocks = nn.ModuleList([Layers(nn.Conv2d(in_channels, width, 3, padding=1))])
        self.init_attn = Layers(TemporalTransformer(width, INIT_HEADS, num_head_channels, linear=False))
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Layers(*block(width, mult * model_channels, level)))
                width = mult * model_channels
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Layers(Downsample(width)))
                skips.append(width)
        self.middle_block = Layers(ResBlock(width, width, embedding), *attentions(width), ResBlock(width, width, embedding))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for number in range(num_res_blocks + 1):
                layers = block(width + skips.pop(), mult * model_channels, level)
                width = mult * model_channels
                if level and number == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Layers(*layers))
        self.out = nn.Sequential(Norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, image: torch.Tensor, fs: torch.Tensor
    ) -> torch.Tensor:
        """The prediction for `x` [B, in_channels, T, h, w]: the noisy latents, followed by those of the image.

        `timesteps` and `fs` (frame stride or frames per second) are [B], `text` [B, L, D], `image` [B, N, D]. With N = 16 T,
        every frame attends to 16 image tokens of its own; with any other N, every frame attends to all of them.
        """
        batch, _, frames, _, _ = x.shape
        emb = self.time_embed(self._waves(timesteps)) + self.fps_embedding(self._waves(fs))
        emb, text = emb.repeat_interleave(frames, dim=0), text.repeat_interleave(frames, dim=0)
        if image.shape[1] == TOKENS_PER_FRAME * frames:
            image = image.reshape(batch * frames, TOKENS_PER_FRAME, -1)
        else:
            image = image.repeat_interleave(frames, dim=0)
        context: dict[str, Any] = {"emb": emb, "text": text, "image": image, "frames": frames}
        h = x.transpose(1, 2).flatten(0, 1)  # [B T, C, h, w]
        skips = []
        for number, layers in enumerate(self.input_blocks):
            h = layers(h, **context)
            if number == 0:
                h = self.init_attn(h, **context)
            skips.append(h)
        h = self.middle_block(h, **context)
        for layers in self.output_blocks:
            h = layers(torch.cat([h, skips.pop()], dim=1), **context)
        return self.out(h).unflatten(0, (batch, frames)).transpose(1, 2)

    def _waves(self, numbers: torch.Tensor) -> torch.Tensor:
        return sinusoids(numbers, self.config["model_channels"]).to(self.dtype)


def sinusoids(numbers: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoidal embedding of numbers [N]: cosines, then sines, float32 [N, channels] (arXiv:1706.03762)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=numbers.device, dtype=torch.float32) / half)
    angles = numbers.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Layers(nn.Sequential):
    """Layers in sequence on frames [B T, C, h, w]; each gets the inputs that its class takes."""

    def forward(  # type: ignore[override]  # Sequential passes a single input on
        self, x: torch.Tensor, *, emb: torch.Tensor, text: torch.Tensor, image: torch.Tensor, frames: int
    ) -> torch.Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, frames)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, text, image)
            elif isinstance(layer, TemporalTransformer):
                x = layer(x, frames)
            else:
                x = layer(x)
        return x


class Norm(nn.GroupNorm):
    """Group norm that always runs in float32."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(GROUPS, channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResBlock(nn.Module):
    """Two spatial convolutions with the embedding of the timestep added between them, then four temporal ones."""

    def __init__(self, channels: int, out: int, embedding: int):
        super().__init__()
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        # the identity stands for the published program's dropout, here and below
        self.out_layers = nn.Sequential(Norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.temopral_conv = TemporalConvolutions(out)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, frames: int) -> torch.Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.temopral_conv(self.skip_connection(x) + self.out_layers(h), frames)


class TemporalConvolutions(nn.Module):
    """A residual block of four convolutions over three frames each; the only layers that see the order of frames."""

    def __init__(self, channels: int):
        super().__init__()
        for number in range(1, 5):
            convolution = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            dropout = [nn.Identity()] if number > 1 else []
            self.add_module(f"conv{number}", nn.Sequential(Norm(channels), nn.SiLU(), *dropout, convolution))
        for parameter in convolution.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        clip = h = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [B, C, T, h, w]
        for convolution in self.children():
            h = convolution(h)
        return (clip + h).transpose(1, 2).flatten(0, 1)


class SpatialTransformer(nn.Module):
    """Attention among the places of a frame, and to the prompt and the image."""

    def __init__(self, channels: int, heads: int, head_dim: int, context_dim: int, image_scale_learnable: bool):
        super().__init__()
        inner = heads * head_dim
        self.norm = Norm(channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(channels, inner), nn.Linear(inner, channels)
        to_context = ImageCrossAttention(inner, context_dim, heads, image_scale_learnable)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, to_context)])

    def forward(self, x: torch.Tensor, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        _, _, height, width = x.shape
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [B T, h w, C]
        for block in self.transformer_blocks:
            h = block(h, text, image)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, (height, width))


class TemporalTransformer(nn.Module):
    """Attention among the frames at each place. Without `linear`, projections are 1x1 convolutions, as in `init_attn`."""

    def __init__(self, channels: int, heads: int, head_dim: int, linear: bool = True):
        super().__init__()
        inner = heads * head_dim
        self.norm = Norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv1d(channels, inner, 1)
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv1d(inner, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, Attention(inner, inner, heads))])

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        _, _, height, width = x.shape
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [B, C, T, h, w]
        h = self.norm(clip).permute(0, 3, 4, 2, 1).flatten(0, 2)  # [B h w, T, C]
        h = project(self.proj_in, h)
        for block in self.transformer_blocks:
            h = block(h)
        h = project(self.proj_out, h).unflatten(0, (-1, height, width))
        return x + h.permute(0, 3, 4, 1, 2).flatten(0, 1)


def project(layer: nn.Linear | nn.Conv1d, tokens: torch.Tensor) -> torch.Tensor:
    """Project tokens [N, L, C] by a linear layer or by an equivalent convolution."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)


class TransformerBlock(nn.Module):
    """Self-attention, a second attention (to the context, or self-attention without one), and a feed-forward layer."""

    def __init__(self, channels: int, heads: int, second: nn.Module):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(channels, channels, heads), second, FeedForward(channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        h = self.norm2(x)
        x = x + self.attn2(h, *(context or (h,)))
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention of tokens [N, L, C] to a context [N, M, D]."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2).split(ROWS) for tokens in (q, k, v))
        parts = [F.scaled_dot_product_attention(*rows) for rows in zip(q, k, v, strict=True)]
        return torch.cat(parts).transpose(1, 2).flatten(2)


class ImageCrossAttention(Attention):
    """Sum of the attention to the prompt and that to the image, which has its own keys and values."""

    def __init__(self, channels: int, context_dim: int, heads: int, image_scale_learnable: bool):
        super().__init__(channels, context_dim, heads)
        self.to_k_ip, self.to_v_ip = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.alpha = nn.Parameter(torch.tensor(0.0)) if image_scale_learnable else None

    def forward(  # type: ignore[override]  # attends to two contexts
        self, x: torch.Tensor, text: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        q = self.to_q(x)
        of_text = self.attend(q, self.to_k(text), self.to_v(text))
        of_image = self.attend(q, self.to_k_ip(image), self.to_v_ip(image))
        if self.alpha is not None:
            of_image = of_image * (torch.tanh(self.alpha) + 1)
        return self.to_out(of_text + of_image)


class FeedForward(nn.Module):
    """Two linear layers with a gated GELU between them (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GatedGELU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class GatedGELU(nn.Module):
    """A linear layer to [..., out] whose output is multiplied by the GELU of a second one."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Downsample(nn.Module):
    """Halve height and width by a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
