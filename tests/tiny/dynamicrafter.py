"""A tiny DynamiCrafter in the layout that convert writes, with the classes and files of the real models."""

from pathlib import Path

from tests.tiny.tokenizer import byte_tokenizer

WIDTH, IMAGE_WIDTH, SIDE, PATCH = 24, 20, 28, 14  # of text states and image tokens, of image states; pixels
SPECIAL = PAD, START, END = "!", "<|startoftext|>", "<|endoftext|>"
UNET = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (1, 2),
    "num_head_channels": 8,
    "context_dim": WIDTH,
}
RESAMPLER = {"dim": 24, "depth": 1, "dim_head": 8, "heads": 3, "embedding_dim": IMAGE_WIDTH, "output_dim": WIDTH}
VAE = {
    "block_out_channels": (4, 4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "scaling_factor": 0.18215,
}
CLIP = {"num_attention_heads": 2, "hidden_act": "gelu"}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 77, **CLIP}
VISION = {
    **{"hidden_size": IMAGE_WIDTH, "intermediate_size": 40, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH},
    **CLIP,
}


def make(folder: Path, variant: str = "256", seed: int = 0) -> Path:
    """Write the repository to `folder` and return it. The same seed gives the same weights."""
    from stages.families.dynamicrafter.convert import write_index
    from stages.families.shared.loading import quiet

    quiet()
    for name, model in models(variant, seed).items():
        model.save_pretrained(Path(folder) / name)
    tokenizer().save_pretrained(Path(folder) / "tokenizer")
    write_index(Path(folder), variant)
    return Path(folder)


def models(variant: str, seed: int = 0) -> dict:
    """The networks by name, without weights of zero."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    from stages.families.dynamicrafter.resampler import Resampler
    from stages.families.dynamicrafter.unet import UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "unet": UNet(**UNET, image_scale_learnable=variant == "256"),
            "image_projector": Resampler(**RESAMPLER),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, **tokens())),
            "image_encoder": CLIPVisionModel(CLIPVisionConfig(**VISION)),
        }
        for parameter in networks["unet"].parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return {name: model.eval() for name, model in networks.items()}


def tokens() -> dict[str, int]:
    return {"vocab_size": 323, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer():
    """A tokenizer like CLIP's: texts between a start and an end token, padded with "!"."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    fast_tokenizer = byte_tokenizer(SPECIAL)
    enclosing = [(START, fast_tokenizer.token_to_id(START)), (END, fast_tokenizer.token_to_id(END))]
    fast_tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=enclosing)
    assert fast_tokenizer.get_vocab_size() == tokens()["vocab_size"]
    return PreTrainedTokenizerFast(
        tokenizer_object=fast_tokenizer, bos_token=START, eos_token=END, pad_token=PAD, unk_token=END, model_max_length=77
    )
