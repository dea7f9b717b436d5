"""A tiny InternVL with random weights, in the layout of the published "-HF" repositories: its captions are gibberish.

The same classes and files as the real ones. For tests, benchmarks and trying out a workflow without the weights.
"""

import json
import re
from pathlib import Path

import click

SIDE, PATCH, SHUFFLE = 56, 14, 0.5  # pixels, pixels, pixel shuffle: 4 x 4 patches, 2 x 2 tokens a frame
TOKENS_PER_FRAME = round((SIDE / PATCH * SHUFFLE) ** 2)
END, PAD = "<|im_end|>", "<|endoftext|>"
VISUAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
SPECIAL = (PAD, "<|im_start|>", END, *VISUAL.values())
CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<IMG_CONTEXT>
{% elif part['type'] == 'video' %}<video>
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# the image processor's numbers are ImageNet's; the published video processor of InternVL has the same
NORMALISATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make(folder: Path, seed: int = 0) -> Path:
    """Write the repository to `folder` and return it; the same seed gives the same weights."""
    import torch

    from stages.models.shared.loading import quiet

    quiet()
    from transformers import GenerationConfig, InternVLConfig, InternVLForConditionalGeneration

    tokenizer = _tokenizer()
    config = InternVLConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(VISUAL["context_image_token"]),
        image_seq_length=TOKENS_PER_FRAME,
        downsample_ratio=SHUFFLE,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": [SIDE, SIDE],
            "patch_size": [PATCH, PATCH],
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 64,
            "max_position_embeddings": 4096,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, suppress_tokens=_unreadable(tokenizer)
    )
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_processors(folder)
    return folder


def _tokenizer():
    from transformers import PreTrainedTokenizerFast

    from stages.models.shared.tiny import byte_tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(SPECIAL),
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens=VISUAL,
        chat_template=CHAT,
    )


def _unreadable(tokenizer) -> list[int]:
    """Tokens other than letters and blanks: without them even random weights say something that a prompt may be."""
    return [i for i in range(len(tokenizer)) if not re.fullmatch(r"[A-Za-z ]+", tokenizer.decode([i]))]


def _write_processors(folder: Path) -> None:
    common = {"processor_class": "InternVLProcessor", "size": {"height": SIDE, "width": SIDE}, **NORMALISATION}
    files = {
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": TOKENS_PER_FRAME},
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


@click.command(help="Write a tiny InternVL to FOLDER. Its weights are random, so its captions are gibberish.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of the weights.")
def main(folder: Path, seed: int) -> None:
    make(folder, seed)
    click.echo(f"{folder}: a tiny captioner with random weights: its captions are gibberish")


if __name__ == "__main__":
    main()
