"""Maps Wan's own weight names to the names of the classes that run here.

The classes are diffusers' `WanTransformer3DModel` and `AutoencoderKLWan` and transformers' `UMT5EncoderModel`. A name that
matches no rule is kept. The order of the rules matters only for the two layouts of the VAE.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Rules = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]


def _rules(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _up_block(match: re.Match[str]) -> str:
    """Wan2.1's decoder is one flat list: each of diffusers' blocks is three residual blocks and an upsampler there."""
    block, place = divmod(int(match[1]), 4)
    return f"decoder.up_blocks.{block}.{'upsamplers.0' if place == 3 else f'resnets.{place}'}."


# Prefixes of a layer's name: of PEFT, diffusers, ComfyUI and DiffSynth.
PREFIXES = re.compile(r"^(?:(?:base_model\.model|transformer|(?:model\.)?diffusion_model|pipe\.dit)\.)*")
WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
TRANSFORMER = _rules(
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.self_attn\.(q|k|v)\.", r"\1.attn1.to_\2."),
    (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attn1.to_out.0."),
    (r"^(blocks\.\d+)\.self_attn\.norm_(q|k)\.", r"\1.attn1.norm_\2."),
    (r"^(blocks\.\d+)\.cross_attn\.(q|k|v)\.", r"\1.attn2.to_\2."),
    (r"^(blocks\.\d+)\.cross_attn\.o\.", r"\1.attn2.to_out.0."),
    (r"^(blocks\.\d+)\.cross_attn\.norm_(q|k)\.", r"\1.attn2.norm_\2."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
)
LAYERS = _rules(  # from diffusers' names of the linear layers of a block to Wan's own
    (r"\.attn1\.to_(q|k|v)$", r".self_attn.\1"),
    (r"\.attn1\.to_out\.0$", ".self_attn.o"),
    (r"\.attn2\.to_(q|k|v)$", r".cross_attn.\1"),
    (r"\.attn2\.to_out\.0$", ".cross_attn.o"),
    (r"\.attn2\.add_(k|v)_proj$", r".cross_attn.\1_img"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
)
TEXT_ENCODER = _rules(
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.(q|k|v|o)\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
VAE = _rules(
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    # Wan2.2 nests its lists; these come before those of Wan2.1, which would match them too
    (r"^encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\.(?=residual|shortcut)", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.downsamples\.(\d+)\.downsamples\.\d+\.", r"encoder.down_blocks.\1.downsampler."),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.(\d+)\.(?=residual|shortcut)", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.\d+\.", r"decoder.up_blocks.\1.upsampler."),
    (r"^encoder\.downsamples\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"^decoder\.upsamples\.(\d+)\.", _up_block),
)
RESIDUAL_BLOCK = _rules(
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def diffusers_name(name: str) -> str:
    """The name in diffusers of a weight of the transformer, without the prefixes of training wrappers."""
    return _renamed(WRAPPERS.sub("", name), TRANSFORMER)


def original_layer(name: str) -> str:
    """Wan's own name of a linear layer of a block, from its name in diffusers."""
    return _renamed(name, LAYERS)


def text_encoder_name(name: str) -> str:
    """The name in transformers of a weight of the text encoder."""
    return _renamed(name, TEXT_ENCODER)


def vae_name(name: str) -> str:
    """The name in diffusers of a weight of the VAE of Wan2.1 or Wan2.2."""
    return _renamed(_renamed(name, VAE), RESIDUAL_BLOCK)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        if pattern.search(name):
            return pattern.sub(replacement, name)
    return name
