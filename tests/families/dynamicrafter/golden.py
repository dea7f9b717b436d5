"""Outputs of the published DynamiCrafter on tiny random weights with their published names (tests/golden/dynamicrafter)."""

import json
from pathlib import Path

from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden/dynamicrafter"
TEXT_TOKENS = 77


def config(name: str) -> dict:
    return json.loads((GOLDEN / f"config_{name}.json").read_text())


def weights(name: str, prefix: str = "") -> dict:
    """The weights below a prefix, float32. The weights of 512 are those of 256 without `alpha`."""
    tensors = load_file(GOLDEN / "weights_256.safetensors")
    selected = {key: w for key, w in tensors.items() if name == "256" or not key.endswith(".alpha")}
    return {key.removeprefix(prefix): w.float() for key, w in selected.items() if key.startswith(prefix)}


def case(name: str) -> dict:
    return load_file(GOLDEN / f"case_{name}.safetensors")


def unet(name: str):
    from stages.families.dynamicrafter.unet import UNet

    published = config(name)
    names = ("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions")
    numbers = {key: published[key] for key in (*names, "num_head_channels", "context_dim")}
    model = UNet(**numbers, image_scale_learnable=published["image_cross_attention_scale_learnable"]).eval()
    model.load_state_dict(weights(name, "model.diffusion_model."))
    return model


def resampler(name: str):
    from stages.families.dynamicrafter.resampler import Resampler

    model = Resampler(**config(name)["resampler"]).eval()
    model.load_state_dict(weights(name, "image_proj_model."))
    return model
