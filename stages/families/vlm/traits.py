"""The kinds of captioners, by the model_type in config.json: how each takes the frames of a video.

Imports no torch, because `--help` and the plan read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Traits:
    """How a kind of model takes frames: as words of the chat, as visual tokens, and as pixels.

    Attributes:
        title: the kind's published name.
        tokens: its special tokens by the name of the tokenizer's attribute, each with its usual text.
        placeholder: the token that the chat template writes for an image, or for a video if `as_video`.
        visual: the token that stands for a feature of the vision network.
        image: the text of an image, where "{visual}" is all its visual tokens and "{NAME}" another token.
        label: function (number from 1, seconds) -> text before a frame.
        count: function config -> visual tokens of an image; None: as many as its patches, which `merge_size` squared merge.
        as_video: the frames take the way of a video through the library's processor, not that of images.
        settings: of the call of the image processor.
        type_ids: name of the model's input that is 1 at visual tokens; "" for none.
        required: names of tokens that tokenizer_config.json has to have.
    """

    title: str
    tokens: Mapping[str, str]
    placeholder: str
    visual: str
    image: str
    label: Callable[[int, float], str]
    count: Callable[[Mapping[str, Any]], int] | None = None
    as_video: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    type_ids: str = ""
    required: tuple[str, ...] = ()

    def token(self, tokenizer: Any, name: str) -> str:
        """The text of a special token: that of the tokenizer's attribute, else the usual one."""
        return getattr(tokenizer, name, None) or self.tokens[name]

    def content(self, times: Sequence[float], instruction: str) -> list[dict[str, str]]:
        """The content of a message that shows frames of these times, in seconds, and asks an instruction."""
        text = {"type": "text", "text": instruction}
        if self.as_video:
            return [{"type": "video"}, text]
        labels = [{"type": "text", "text": self.label(number, time)} for number, time in enumerate(times, 1)]
        return [part for label in labels for part in (label, {"type": "image"})] + [text]

    def expand(self, chat: str, tokenizer: Any, times: Sequence[float], counts: Sequence[int]) -> str:
        """A rendered chat with images, each of as many visual tokens as `counts`, instead of the placeholders."""
        others = {name: self.token(tokenizer, name) for name in self.tokens}
        visual = others[self.visual]
        images = [self.image.format_map({**others, "visual": visual * count}) for count in counts]
        if self.as_video:
            lines = (self.label(number, time) + shown for number, (time, shown) in enumerate(zip(times, images), 1))
            images = ["\n".join(lines)]
        before, *after = chat.split(others[self.placeholder], len(images))
        return before + "".join(shown + text for shown, text in zip(images, after, strict=True))


def idefics_count(config: Mapping[str, Any]) -> int:
    """Visual tokens of an image that is not split: its patches, of which scale_factor squared become one."""
    vision = config["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2 // config["scale_factor"] ** 2


def numbered(number: int, time: float) -> str:
    return f"Frame{number}: "


def at_second(number: int, time: float) -> str:
    return f"<{time:.1f} seconds>"


def at_minute(number: int, time: float) -> str:
    return f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:"


QWEN: dict[str, Any] = {
    "tokens": {"image_token": "<|image_pad|>"},
    "placeholder": "image_token",
    "visual": "image_token",
    "image": "{visual}",  # the chat template writes the tokens around it
    "label": at_second,
    "type_ids": "mm_token_type_ids",
}
IDEFICS: dict[str, Any] = {
    "tokens": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    },
    "placeholder": "image_token",
    "visual": "image_token",
    "image": "{fake_image_token}{global_image_token}{visual}{fake_image_token}",
    "count": idefics_count,
    "settings": {"do_image_splitting": False},
}
INTERNVL = Traits(
    title="InternVL",
    tokens={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    placeholder="video_token",
    visual="context_image_token",
    image="{start_image_token}{visual}{end_image_token}",
    label=numbered,
    count=lambda config: config["image_seq_length"],
    as_video=True,
    settings={"crop_to_patches": False},
    required=("start_image_token", "end_image_token", "context_image_token", "video_token"),
)
TRAITS = {
    "internvl": INTERNVL,
    "qwen3_vl": Traits(title="Qwen3-VL", **QWEN),
    "qwen2_5_vl": Traits(title="Qwen2.5-VL", **QWEN),
    "smolvlm": Traits(title="SmolVLM2", label=at_minute, **IDEFICS),
    "idefics3": Traits(title="Idefics3", label=numbered, **IDEFICS),
    "gemma3": Traits(
        title="Gemma 3",
        tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        placeholder="boi_token",
        visual="image_token",
        image="\n\n{boi_token}{visual}{eoi_token}\n\n",
        label=numbered,
        count=lambda config: config["mm_tokens_per_image"],
        settings={"do_pan_and_scan": False},
        type_ids="token_type_ids",
        required=("boi_token", "eoi_token", "image_token"),
    ),
}
