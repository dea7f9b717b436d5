"""Wan's own names of the transformer's weights, and those of diffusers' `WanTransformer3DModel`."""

from __future__ import annotations

import re

WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
RULES = [
    (re.compile(pattern), name)
    for pattern, name in (
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
]


def diffusers_name(name: str) -> str:
    """The name in diffusers of a weight of Wan's, without what the wrappers of a training put in; the others stay."""
    name = WRAPPERS.sub("", name)
    for pattern, replacement in RULES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name
