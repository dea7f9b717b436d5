"""Tiny networks that look at frames, with random weights, in transformers' layout with the files of the published ones."""

from pathlib import Path

SIDE, PATCH = 32, 8
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}
POSITIONS = 24


def make(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a repository of a kind to `folder` and return it: clip, siglip, dinov2 or depth."""
    import torch

    from stages.families.shared.loading import quiet

    quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, processor = {"clip": _clip, "siglip": _siglip, "dinov2": _dinov2, "depth": _depth}[kind]()
        for parameter in network.parameters():  # so that frames and texts are told apart
            torch.nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind in ("clip", "siglip"):
        _tokenizer().save_pretrained(folder)
    return Path(folder)


def _tokenizer():
    from transformers import PreTrainedTokenizerFast

    from tests.tiny.tokenizer import byte_tokenizer

    pad, start, end = special = ("<pad>", "<s>", "</s>")
    tokenizer = byte_tokenizer(special, end)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end, model_max_length=POSITIONS
    )


def _text():
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**LAYERS, **ids, "vocab_size": len(_tokenizer()), "max_position_embeddings": POSITIONS}


def _clip():
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    config = CLIPConfig(text_config=_text(), vision_config=VISION, projection_dim=12)
    return CLIPModel(config), CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _siglip():
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    config = SiglipConfig(text_config={**_text(), "projection_size": 16}, vision_config=VISION)
    return SiglipModel(config), SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def _dinov2():
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(**{**VISION, "mlp_ratio": 2})
    crop = {"height": SIDE, "width": SIDE}
    return Dinov2Model(config), BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=crop)


def _depth():
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessorPil

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    return DepthAnythingForDepthEstimation(config), DPTImageProcessorPil(size={"height": SIDE, "width": SIDE})
