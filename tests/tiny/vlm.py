"""A tiny InternVL in the layout of the published "-HF" repositories, with the classes and files of the real models."""

import re
from pathlib import Path

from tests.tiny.tokenizer import byte_tokenizer

SIDE, PATCH = 56, 14  # pixels: 4 x 4 patches, 2 x 2 tokens a frame


def make(folder: Path, seed: int = 0) -> Path:
    """Write the repository to `folder` and return it. The same seed gives the same weights."""
    import torch

    from stages.families.shared.loading import quiet

    quiet()
    from stages.families.vlm import build

    tokenizer = build.chat_tokenizer(byte_tokenizer(build.SPECIAL))
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
    }
    text = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build.build(tokenizer, vision, text).eval()
    model.generation_config.suppress_tokens = unreadable_tokens(tokenizer)
    build.save(folder, model, tokenizer)
    return Path(folder)


def unreadable_tokens(tokenizer) -> list[int]:
    """Tokens other than letters and blanks. Without them even random weights give a usable prompt."""
    return [i for i in range(len(tokenizer)) if not re.fullmatch(r"[A-Za-z ]+", tokenizer.decode([i]))]
