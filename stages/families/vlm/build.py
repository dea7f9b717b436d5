"""Builds a new InternVL of any size, in the layout of the published "-HF" repositories."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VISUAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
SPECIAL = (PAD, START, END, *VISUAL.values())
CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<IMG_CONTEXT>
{% elif part['type'] == 'video' %}<video>
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# mean and standard deviation of ImageNet, as in the published image and video processors of InternVL
NORMALISATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def build(tokenizer: Any, vision: Mapping[str, Any], text: Mapping[str, Any], downsample_ratio: float = 0.5) -> Any:
    """Make an InternVLForConditionalGeneration of random weights from its vision and text configs."""
    from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(VISUAL["context_image_token"]),
        image_seq_length=round((vision["image_size"][0] / vision["patch_size"][0] * downsample_ratio) ** 2),
        downsample_ratio=downsample_ratio,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        vision_config=dict(vision),
        text_config={
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **text,
        },
    )
    model = InternVLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def chat_tokenizer(tokenizer: Any, **settings: Any) -> Any:
    """Wrap a tokenizer of the `tokenizers` library for transformers, with InternVL's special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens=VISUAL,
        chat_template=CHAT,
        **settings,
    )


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a repository: weights, tokenizer and the configs of the processors."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    height, width = model.config.vision_config.image_size
    common = {"processor_class": "InternVLProcessor", "size": {"height": height, "width": width}, **NORMALISATION}
    files = {
        "processor_config.json": {
            "processor_class": "InternVLProcessor",
            "image_seq_length": model.config.image_seq_length,
        },
        "preprocessor_config.json": {
            **common,
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 12,
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "resample": 3,
        },
        "video_preprocessor_config.json": {
            **common,
            "video_processor_type": "InternVLVideoProcessor",
            "do_sample_frames": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
