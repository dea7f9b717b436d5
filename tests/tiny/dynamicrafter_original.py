"""DynamiCrafter's published checkpoint, written down module by module as its classes nest them, to test convert.

Text and vision are OpenCLIP's towers, made of torch's own attention; the VAE's names are from diffusers' to
latent-diffusion's.
"""

from collections import OrderedDict

import torch
from torch import nn

from tests.tiny import dynamicrafter as tiny


class Tower(nn.Module):
    """OpenCLIP's transformer."""

    def __init__(self, width: int, layers: int, mult: int = 2):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, mult) for _ in range(layers))


class Block(nn.Module):
    def __init__(self, width: int, mult: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        layers = ("c_fc", nn.Linear(width, mult * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(mult * width, width))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        normalised = self.ln_1(x)
        x = x + self.attn(normalised, normalised, normalised, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Text(nn.Module):
    """The text tower, with one layer more than is used."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(tiny.tokens()["vocab_size"], tiny.WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(77, tiny.WIDTH))
        self.transformer = Tower(tiny.WIDTH, tiny.TEXT["num_hidden_layers"] + 1)
        self.ln_final = nn.LayerNorm(tiny.WIDTH)
        self.text_projection = nn.Parameter(torch.randn(tiny.WIDTH, tiny.WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, ids):
        """The states before the last layer, after the last norm."""
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((77, 77), float("-inf")).triu(1)
        for block in self.transformer.resblocks[:-1]:
            x = block(x, mask)
        return self.ln_final(x)


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        width = tiny.IMAGE_WIDTH
        self.conv1 = nn.Conv2d(3, width, tiny.PATCH, tiny.PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(1 + (tiny.SIDE // tiny.PATCH) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, tiny.VISION["num_hidden_layers"])
        self.proj = nn.Parameter(torch.randn(width, width))

    def forward(self, pixels):
        """All states, without the last norm."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return x


def vae_names(levels: int = 4, blocks: int = 1) -> dict[str, str]:
    """Module names of latent-diffusion, by those of diffusers."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, direction, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        names |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for number in range(2):
            names |= resnet(f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}")
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for ours, theirs in attention.items():
            names[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
        for level in range(levels):
            theirs = level if direction == "down" else levels - 1 - level
            for number in range(count):
                block = f"{half}.{direction}_blocks.{level}.resnets.{number}"
                names |= resnet(block, f"{half}.{direction}.{theirs}.block.{number}")
            sampler = f"{half}.{direction}_blocks.{level}.{direction}samplers.0.conv"
            names[sampler] = f"{half}.{direction}.{theirs}.{direction}sample.conv"
    return names


def resnet(ours: str, theirs: str) -> dict[str, str]:
    parts = ("norm1", "conv1", "norm2", "conv2")
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in parts} | {f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def vae_weights(vae) -> dict[str, torch.Tensor]:
    """The weights of a VAE by latent-diffusion's names, with attention as convolutions."""
    names, weights = vae_names(), {}
    for name, weight in vae.state_dict().items():
        module, _, kind = name.rpartition(".")
        attention = ".attentions." in name and weight.ndim == 2
        weights[f"{names[module]}.{kind}"] = weight[:, :, None, None] if attention else weight
    return weights


def state_dict(variant: str, text: Text, vision: Vision) -> dict[str, torch.Tensor]:
    """The contents of model.ckpt, with the tables of the noise schedule."""
    models = tiny.models(variant, seed=1)
    parts = {
        "model.diffusion_model.": models["unet"].state_dict(),
        "image_proj_model.": models["image_projector"].state_dict(),
        "first_stage_model.": vae_weights(models["vae"]),
        "cond_stage_model.model.": text.state_dict(),
        "embedder.model.visual.": vision.state_dict(),
        "embedder.model.": {name: w for name, w in text.state_dict().items() if not name.startswith("transformer.")},
    }
    weights = {prefix + name: weight.clone() for prefix, part in parts.items() for name, weight in part.items()}
    return {**weights, "betas": torch.zeros(1000), "scale_arr": torch.ones(1400)}
