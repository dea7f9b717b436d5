"""Renaming of DynamiCrafter's published weights to the names of diffusers and transformers.

The VAE is that of Stable Diffusion (latent-diffusion's names). The text and image encoders are OpenCLIP's ViT-H/14.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

Weights = dict[str, torch.Tensor]
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

VAE_RULES: Rules = (
    (r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d)\.block\.(\d)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d)\.block\.(\d)\.", lambda m: f".up_blocks.{3 - int(m[1])}.resnets.{m[2]}."),
    (r"\.up\.(\d)\.upsample\.", lambda m: f".up_blocks.{3 - int(m[1])}.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
LAYER_RULES: Rules = (
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TEXT_RULES: Rules = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
)
VISION_RULES: Rules = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),  # as transformers spells it
    (r"^ln_post\.", "post_layernorm."),
)
TEXT_UNUSED = ("text_projection", "logit_scale", "attn_mask")
VISION_UNUSED = ("proj",)


def apply_rules(name: str, rules: Rules) -> str:
    """Apply the substitutions (pattern, replacement) to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def vae_weights(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights of an `AutoencoderKL` of four levels. The 1x1 convolutions of its attention become linear layers."""
    named = {apply_rules(name, VAE_RULES): weight for name, weight in weights.items()}
    return {name: w.flatten(1) if ".attentions." in name and w.ndim == 4 else w for name, w in named.items()}


def text_weights(weights: Mapping[str, torch.Tensor], layers: int) -> Weights:
    """The weights of a `CLIPTextModel` with `layers` layers: the published model reads the states before the last layer."""
    named = clip_weights(weights, (*LAYER_RULES, *TEXT_RULES), TEXT_UNUSED)
    return {name: w for name, w in named.items() if not name.startswith(f"encoder.layers.{layers}.")}


def vision_weights(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights of a `CLIPVisionModel`."""
    return clip_weights(weights, (*LAYER_RULES, *VISION_RULES), VISION_UNUSED)


def clip_weights(weights: Mapping[str, torch.Tensor], rules: Rules, unused: tuple[str, ...]) -> Weights:
    """OpenCLIP's weights by transformers' names. Its stacked matrix of query, key and value is split in three."""
    named: Weights = {}
    for name, weight in weights.items():
        if name in unused:
            continue
        new = apply_rules(name, rules)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", new):
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                named[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece.clone()  # safetensors shares no memory
        else:
            named[new] = weight
    return named
