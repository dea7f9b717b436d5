"""Wan's own layout, written down module by module as its classes nest them, to test the rules of convert.

Each table is from the names of diffusers or transformers to Wan's.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

CONFIG_NAMES = {  # of the transformer
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "eps": "eps",
}
MODEL_TYPES = {"5b": "ti2v", "14b": "i2v", "14b-t2v": "t2v", "": "t2v"}
VAE_FILES = {"5b": "Wan2.2_VAE.pth", "14b": "Wan2.1_VAE.pth", "14b-t2v": "Wan2.1_VAE.pth", "": "Wan2.1_VAE.pth"}


def with_parameters(modules: Mapping[str, str], kinds=("weight", "bias")) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in kinds}


def transformer_names(layers: int) -> dict[str, str]:
    modules = {
        "patch_embedding": "patch_embedding",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
    }
    norms, tables = {}, {"scale_shift_table": "head.modulation"}
    for layer in range(layers):
        block = f"blocks.{layer}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            modules[f"{block}.{ours}.to_q"] = f"{block}.{theirs}.q"
            modules[f"{block}.{ours}.to_k"] = f"{block}.{theirs}.k"
            modules[f"{block}.{ours}.to_v"] = f"{block}.{theirs}.v"
            modules[f"{block}.{ours}.to_out.0"] = f"{block}.{theirs}.o"
            norms[f"{block}.{ours}.norm_q"] = f"{block}.{theirs}.norm_q"
            norms[f"{block}.{ours}.norm_k"] = f"{block}.{theirs}.norm_k"
        modules[f"{block}.norm2"] = f"{block}.norm3"
        modules[f"{block}.ffn.net.0.proj"] = f"{block}.ffn.0"
        modules[f"{block}.ffn.net.2"] = f"{block}.ffn.2"
        tables[f"{block}.scale_shift_table"] = f"{block}.modulation"
    return with_parameters(modules) | with_parameters(norms, ("weight",)) | tables


def text_encoder_names(layers: int) -> dict[str, str]:
    modules = {"shared": "token_embedding", "encoder.final_layer_norm": "norm"}
    for layer in range(layers):
        attention, feed_forward = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        block = f"blocks.{layer}"
        modules |= {f"{attention}.SelfAttention.{name}": f"{block}.attn.{name}" for name in "qkvo"}
        modules[f"{attention}.SelfAttention.relative_attention_bias"] = f"{block}.pos_embedding.embedding"
        modules[f"{attention}.layer_norm"] = f"{block}.norm1"
        modules[f"{feed_forward}.layer_norm"] = f"{block}.norm2"
        modules[f"{feed_forward}.DenseReluDense.wi_0"] = f"{block}.ffn.gate.0"  # the one with the activation
        modules[f"{feed_forward}.DenseReluDense.wi_1"] = f"{block}.ffn.fc1"
        modules[f"{feed_forward}.DenseReluDense.wo"] = f"{block}.ffn.fc2"
    return with_parameters(modules, ("weight",))


def vae_names(nested: bool) -> dict[str, str]:
    """All modules of a VAE of four levels. `nested` is the form of Wan2.2, where each level is a list of its own."""
    names = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    names = with_parameters(names)
    for half in ("encoder", "decoder"):
        names |= with_parameters({f"{half}.conv_in": f"{half}.conv1", f"{half}.conv_out": f"{half}.head.2"})
        names |= {f"{half}.norm_out.gamma": f"{half}.head.0.gamma"}
        names |= residual_block(f"{half}.mid_block.resnets.0", f"{half}.middle.0")
        names |= residual_block(f"{half}.mid_block.resnets.1", f"{half}.middle.2")
        attention, theirs = f"{half}.mid_block.attentions.0", f"{half}.middle.1"
        names |= with_parameters({f"{attention}.to_qkv": f"{theirs}.to_qkv", f"{attention}.proj": f"{theirs}.proj"})
        names |= {f"{attention}.norm.gamma": f"{theirs}.norm.gamma"}
    flat = {"encoder": 0, "decoder": 0}
    for level in range(4):
        for half, kind, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
            for position in range(blocks + (level < 3)):
                number = f"{level}.{kind}samples.{position}" if nested else str(flat[half])
                theirs = f"{half}.{kind}samples.{number}"
                level_block = f"{half}.{kind}_blocks.{level}"
                if not nested and half == "encoder":
                    ours = f"encoder.down_blocks.{flat[half]}"
                elif position < blocks:
                    ours = f"{level_block}.resnets.{position}"
                else:
                    ours = f"{level_block}.{kind}sampler" if nested else f"{level_block}.upsamplers.0"
                if position < blocks:
                    names |= residual_block(ours, theirs)
                else:
                    parts = ("resample.1", "time_conv")
                    names |= with_parameters({f"{ours}.{part}": f"{theirs}.{part}" for part in parts})
                flat[half] += 1
    return names


def residual_block(ours: str, theirs: str) -> dict[str, str]:
    convolutions = {"conv1": "residual.2", "conv2": "residual.6", "conv_shortcut": "shortcut"}
    names = with_parameters({f"{ours}.{mine}": f"{theirs}.{original}" for mine, original in convolutions.items()})
    return names | {
        f"{ours}.norm1.gamma": f"{theirs}.residual.0.gamma",
        f"{ours}.norm2.gamma": f"{theirs}.residual.3.gamma",
    }


def originals(model, names: Mapping[str, str]) -> dict:
    """The weights of a model by Wan's names."""
    return {names[name]: parameter.detach().clone() for name, parameter in model.named_parameters()}


def write(folder: Path, variant: str, models: Mapping, tokenizer: Path) -> Path:
    """Write models of diffusers and transformers in Wan's own layout: "transformer", "text_encoder", "vae", ..."""
    import torch

    sources = {"transformer": folder}
    if "transformer_2" in models:
        sources = {"transformer": folder / "high_noise_model", "transformer_2": folder / "low_noise_model"}
    for name, target in sources.items():
        write_transformer(target, models[name], MODEL_TYPES[variant])
    encoder = models["text_encoder"]
    names = text_encoder_names(encoder.config.num_layers)
    torch.save(originals(encoder, names), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(originals(models["vae"], vae_names(nested=variant == "5b")), folder / VAE_FILES[variant])
    shutil.copytree(tokenizer, folder / "google/umt5-xxl")
    return folder


def write_transformer(folder: Path, model, model_type: str) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {theirs: model.config[ours] for ours, theirs in CONFIG_NAMES.items()}
    config |= {"model_type": model_type, "text_len": 512}
    config["dim"] = model.config.num_attention_heads * model.config.attention_head_dim
    (folder / "config.json").write_text(json.dumps(config))
    weights = list(originals(model, transformer_names(model.config.num_layers)).items())
    for shard, part in enumerate((weights[:20], weights[20:]), 1):
        save_file(dict(part), folder / f"diffusion_pytorch_model-0000{shard}-of-00002.safetensors")
