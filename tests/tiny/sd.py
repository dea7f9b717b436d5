"""A tiny Stable Diffusion 1.5 with ControlNets and the networks for their maps, with classes and files of the real ones."""

import json
from pathlib import Path

from tests.tiny.tokenizer import byte_tokenizer

LENGTH, WIDTH = 16, 16  # tokens of a prompt, and the width of their states


def make_segmenter(folder: Path, labels=("background", "bird", "car"), seed: int = 0) -> Path:
    """Write a MobileViT for semantic segmentation to `folder` and return it. Its processor crops, as the published one."""
    import torch
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

    from stages.families.shared.loading import quiet

    quiet()
    config = MobileViTConfig(
        image_size=64,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        aspp_out_channels=8,
        atrous_rates=[1, 2, 3],
        mlp_ratio=1.0,
        expand_ratio=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MobileViTForSemanticSegmentation(config)
        for name, weights in net.named_parameters():
            if weights.ndim > 1:
                torch.nn.init.kaiming_normal_(weights)
            elif name.endswith("weight"):  # of norms, whose initial weights are so small that the masks have no contrast
                torch.nn.init.ones_(weights)
    net.save_pretrained(folder)
    processor = MobileViTImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    return Path(folder)


def make(folder: Path, seed: int = 0) -> Path:
    """Write the repository to `folder` and return it. The same seed gives the same weights."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessor,
        PreTrainedTokenizerFast,
    )

    from stages.families.fresco.control import HED
    from stages.families.shared.loading import quiet

    quiet()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer([end], end), pad_token=end, eos_token=end, model_max_length=LENGTH
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        unet.save_pretrained(folder / "unet")
        for control in ("hed", "canny", "depth"):
            net = ControlNetModel.from_unet(unet, conditioning_channels=3)
            for weights in net.parameters():
                if not weights.any():  # zero-initialised layers would give zero
                    torch.nn.init.normal_(weights, std=0.05)
            net.save_pretrained(folder / f"controlnet_{control}")
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        ).save_pretrained(folder / "vae")
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
            )
        ).save_pretrained(folder / "text_encoder")
        (folder / "hed").mkdir()
        save_file(HED([(2, 4), (2, 4), (3, 8), (3, 8), (3, 8)]).state_dict(), folder / "hed/hed.safetensors")
        small = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        depth = DPTForDepthEstimation(
            DPTConfig(
                **small,
                image_size=32,
                patch_size=8,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 8, 8, 8],
                fusion_hidden_size=8,
                is_hybrid=False,
            )
        )
        for weights in depth.parameters():
            torch.nn.init.normal_(
                weights, std=0.2
            )  # the initial weights of transformers are so small that the depth is the same everywhere
        depth.save_pretrained(folder / "depth")
    DPTImageProcessor(size={"height": 32, "width": 32}, keep_aspect_ratio=False).save_pretrained(folder / "depth")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return Path(folder)
