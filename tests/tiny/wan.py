"""Tiny Wan2.2 repositories in the public diffusers layout, with the classes and files of the real models."""

from pathlib import Path

import numpy as np

TEXT_WIDTH = 32


def make(folder: Path, variant: str, seed: int = 0) -> Path:
    """Write a repository of variant "14b", "14b-t2v" or "5b" to `folder`, and return it. A seed gives the same weights."""
    import torch

    from stages.families.shared.loading import quiet

    quiet()
    from diffusers import WanImageToVideoPipeline, WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = text_parts()
        if variant == "14b":
            pipeline = WanImageToVideoPipeline(
                **text,
                vae=wan_vae(z_dim=16),
                scheduler=_scheduler(3.0),
                transformer=_transformer(16 + 4 + 16, 16),
                transformer_2=_transformer(16 + 4 + 16, 16),
                boundary_ratio=0.9,
            )
        elif variant == "14b-t2v":
            pipeline = WanPipeline(
                **text,
                vae=wan_vae(z_dim=16),
                scheduler=_scheduler(3.0),
                transformer=_transformer(16, 16),
                transformer_2=_transformer(16, 16),
                boundary_ratio=0.875,
            )
        else:  # published with the text-to-video class
            pipeline = WanPipeline(
                **text,
                vae=wan_vae(
                    z_dim=48,
                    decoder_base_dim=4,
                    in_channels=12,
                    out_channels=12,
                    patch_size=2,
                    is_residual=True,
                    scale_factor_spatial=16,
                    latents_mean=[0.01 * i for i in range(48)],
                    latents_std=[1 + 0.01 * i for i in range(48)],
                ),
                scheduler=_scheduler(5.0),
                transformer=_transformer(48, 48),
                expand_timesteps=True,
            )
        pipeline.save_pretrained(folder)
    return Path(folder)


def text_parts():
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    from tests.tiny.tokenizer import byte_tokenizer

    pad, end, unknown = special = ("<pad>", "</s>", "<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(special, end), pad_token=pad, eos_token=end, unk_token=unknown
    )
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return {"tokenizer": tokenizer, "text_encoder": UMT5EncoderModel(config).eval()}


def _transformer(channels_in: int, channels_out: int):
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels_in,
        out_channels=channels_out,
        text_dim=TEXT_WIDTH,
        freq_dim=256,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
    ).eval()


def wan_vae(**config):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        **{"base_dim": 3 if config["z_dim"] == 16 else 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **config}
    )
    vae.decoder.conv_out.weight.data *= 2  # so that the noise fills the range of the pixels
    return vae.eval()


def _scheduler(shift: float):
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def set_schedule(pipe, shift: float, sigma_grid: str = "wan") -> None:
    """Set the shift and sigma grid of a diffusers pipeline as in our stages. The grid "diffusers" changes nothing."""
    from diffusers import UniPCMultistepScheduler

    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=shift)
    if sigma_grid == "wan":
        set_timesteps = pipe.scheduler.set_timesteps

        def on_published_grid(steps, device=None):
            set_timesteps(device=device, sigmas=np.linspace(0.999, 0, steps + 1)[:-1])

        pipe.scheduler.set_timesteps = on_published_grid
