"""A checkpoint of Stable Diffusion in a single file, as its authors lay it out: latent-diffusion's names of the modules."""

from pathlib import Path

from tests.tiny.dynamicrafter_original import vae_weights


def unet_modules(levels: int, layers: int) -> dict[str, str]:
    """From diffusers' modules, or groups of them, to latent-diffusion's."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(levels):
        for layer in range(layers):
            place = f"input_blocks.{1 + level * (layers + 1) + layer}"
            names[f"down_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        for layer in range(layers + 1):
            place = f"output_blocks.{level * (layers + 1) + layer}"
            names[f"up_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        sampler = f"output_blocks.{level * (layers + 1) + layers}.{1 if level == 0 else 2}.conv"  # level 0 has no attention
        names[f"up_blocks.{level}.upsamplers.0.conv"] = sampler
    return names


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_weights(unet) -> dict:
    modules, found = unet_modules(len(unet.config.block_out_channels), unet.config.layers_per_block), {}
    for name, weight in unet.state_dict().items():
        ours = next(module for module in modules if name.startswith(f"{module}."))
        rest = name.removeprefix(f"{ours}.")
        part, _, kind = rest.rpartition(".")
        found[f"{modules[ours]}.{RESNET[part]}.{kind}" if ".resnets." in name else f"{modules[ours]}.{rest}"] = weight
    return found


def write(repository: Path, path: Path) -> Path:
    """Write the U-Net, the VAE and the text encoder of a repository to one file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    text = load_file(repository / "text_encoder/model.safetensors")
    parts = {
        "model.diffusion_model.": unet_weights(UNet2DConditionModel.from_pretrained(repository / "unet")),
        "first_stage_model.": vae_weights(AutoencoderKL.from_pretrained(repository / "vae")),
        "cond_stage_model.transformer.": {
            f"text_model.{name.removeprefix('text_model.')}": one for name, one in text.items()
        },
    }
    weights = {prefix + name: weight.contiguous() for prefix, part in parts.items() for name, weight in part.items()}
    save_file(weights, path)
    return path
