"""Tiny captioners of each kind besides InternVL, with random weights, in the layout of the published repositories."""

import json
from pathlib import Path

from tests.tiny.tokenizer import byte_tokenizer
from tests.tiny.vlm import unreadable_tokens

PAD, END = "<pad>", "<end>"
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
GEMMA_TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
LOOP = (
    "{{% for message in messages %}}{{{{ message['role'] }}}}\n{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}<end>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}assistant\n{{% endif %}}"
)


def qwen(kind: str, tokenizer, image: int):
    """The config, the image processor and its file's further entries of a Qwen-VL."""
    import transformers

    patch = 16 if kind == "qwen3_vl" else 14
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    own = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]} if kind == "qwen3_vl" else {"window_size": 56}
    config = getattr(transformers, "Qwen3VLConfig" if kind == "qwen3_vl" else "Qwen2_5_VLConfig")(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={**vision, **own, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=image,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    area = {"shortest_edge": 2000, "longest_edge": 10000}
    return config, {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": patch, "size": area}


def idefics(kind: str, tokenizer, image: int):
    """The same of a SmolVLM or an Idefics3: 9 tokens a picture."""
    import transformers

    config = getattr(transformers, "SmolVLMConfig" if kind == "smolvlm" else "Idefics3Config")(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config={**VISION, "image_size": 48, "patch_size": 8},
        image_token_id=image,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    name = "SmolVLMImageProcessor" if kind == "smolvlm" else "Idefics3ImageProcessor"
    return config, {
        "image_processor_type": name,
        "size": {"longest_edge": 96},
        "max_image_size": {"longest_edge": 48},
        "do_image_splitting": True,
        "image_seq_len": 9,
    }


def gemma(kind: str, tokenizer, image: int):
    """The same of a Gemma 3: 4 tokens a picture."""
    import transformers

    config = transformers.Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer), "sliding_window": 512, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=image,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return config, {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_seq_length": 4,
    }


KINDS = {  # how each is made, its special tokens, the token of a picture, and what the chat template writes for one
    "qwen3_vl": (qwen, QWEN_TOKENS, "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": (qwen, QWEN_TOKENS, "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    "smolvlm": (idefics, IDEFICS_TOKENS, "<image>", "<image>"),
    "idefics3": (idefics, IDEFICS_TOKENS, "<image>", "<image>"),
    "gemma3": (gemma, tuple(GEMMA_TOKENS.values()), "<image_soft_token>", "<start_of_image>"),
}


def make(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write the repository of a captioner of a model type to `folder` and return it."""
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

    from stages.families.shared.loading import quiet

    quiet()
    config_of, special, image, written = KINDS[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer((PAD, END, *special)),
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        chat_template=LOOP.format(image=written),
        extra_special_tokens=GEMMA_TOKENS if kind == "gemma3" else {},
    )
    config, processor = config_of(kind, tokenizer, tokenizer.convert_tokens_to_ids(image))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval()
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.15)  # so that pictures decide what is written
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=unreadable_tokens(tokenizer),
        do_sample=True,  # as in the published files of Qwen3-VL: caption_vlm does not sample all the same
        top_k=20,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return Path(folder)
