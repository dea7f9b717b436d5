"""Tiny Helios repositories in the public diffusers layout, with the classes and files of the real models."""

from pathlib import Path

from tests.tiny.wan import TEXT_WIDTH, text_parts, wan_vae

GAMMA = 0.333  # with the published 1/3 the pipelines of diffusers fail on a CPU


def make(folder: Path, variant: str, gamma: float = GAMMA, seed: int = 0) -> Path:
    """Write a repository of variant "base", "mid" or "distilled" to `folder`, and return it."""
    import torch

    from stages.families.shared.loading import quiet

    quiet()
    from diffusers import (
        HeliosDMDScheduler,
        HeliosPipeline,
        HeliosPyramidPipeline,
        HeliosScheduler,
        HeliosTransformer3DModel,
    )

    pipelines = {
        "base": lambda **parts: HeliosPipeline(scheduler=HeliosScheduler(stages=1, use_dynamic_shifting=True), **parts),
        "mid": lambda **parts: HeliosPyramidPipeline(
            scheduler=HeliosScheduler(gamma=gamma, use_dynamic_shifting=True), is_cfg_zero_star=True, **parts
        ),
        "distilled": lambda **parts: HeliosPyramidPipeline(
            scheduler=HeliosDMDScheduler(gamma=gamma, use_dynamic_shifting=True), is_distilled=True, **parts
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = HeliosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            text_dim=TEXT_WIDTH,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_dim=(8, 8, 8),
        )
        pipelines[variant](**text_parts(), vae=wan_vae(z_dim=16), transformer=transformer.eval()).save_pretrained(folder)
    return Path(folder)
