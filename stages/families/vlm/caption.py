"""Captions by vision-language models, without remote code and without torchvision.

The library's processors of models that also take videos need torchvision. This module combines the parts of them that do
not: the tokenizer's chat template, an image processor on Pillow, and the text that the processor would write (`Traits`).
Token ids equal the library's, and so do pixels, but for InternVL, whose video processor has another resize. torch is
imported only if a model is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.families.shared.item import check_against_model
from stages.families.vlm.chat import chat
from stages.families.vlm.options import FAMILY, CaptionOptions
from stages.families.vlm.prompt import is_structured, prompt_from
from stages.families.vlm.requests import fill, instruction_of
from stages.families.vlm.traits import TRAITS, Traits
from stages.media.options import IMAGE_ENDINGS
from stages.media.read import Frame, read_image
from stages.media.select import ending, sample
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.batching import BatchWorker
from stages.runtime.components import read_config, template_of_processor
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.resident import RESIDENTS
from stages.runtime.text import read_text
from stages.runtime.worker import Work

if TYPE_CHECKING:
    import torch

# defaults of InternVL's video processor, for values that its config lacks (those of CLIP)
VIDEO_DEFAULTS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
USED = ("image_mean", "image_std", "size")
PIXELS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")  # what models take of an image processor's output


@dataclass(frozen=True)
class Question:
    """What a model is asked: frames, and a text about them."""

    frames: list[Frame]
    text: str

    @property
    def indices(self) -> list[int]:
        return [frame.index for frame in self.frames]


@dataclass(frozen=True)
class Answer:
    """What a model answers, unedited, and the numbers of tokens, in and out."""

    raw: str
    tokens: tuple[int, int]


@dataclass(frozen=True)
class Description:
    """What a model says of a video, with the indices of the frames and the numbers of tokens, in and out.

    `raw` is the answer that becomes the prompt. `further` are fields of the artifact about how it was reached.
    """

    raw: str = ""
    frames: list[int] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)
    further: dict[str, Any] = field(default_factory=dict)


class Caption(BatchWorker[CaptionOptions, Description]):
    """Writes `caption`: the raw description of a video and the prompt made of it, or the prompt of the options."""

    def check(self, work: Work[CaptionOptions]) -> None:
        source = work.input("video")
        if isinstance(source, Artifact):
            source.member(".mp4")
        if not work.options.prompt:
            check_against_model(FAMILY, self.model, work.options.values())

    def load(self, options: CaptionOptions) -> None:
        """Load tokenizer, image processor and model. Raises JobError."""
        from stages.families.shared.loading import DTYPES, load_image_processor, load_network, load_tokenizer, loading

        folder = self.model.folder()
        with loading(self.model):
            from transformers import AutoModelForImageTextToText

            self.traits = traits_of(folder)
            tokenizer = RESIDENTS.take(self.model, "tokenizer", lambda: load_tokenizer(folder))
            self.tokenizer = with_template(tokenizer, folder, options.chat_template)
            chat(self.traits, self.tokenizer, (0.0,), options.instruction)  # raises before the weights are loaded
            settings = video_settings(folder) if self.traits.as_video else {}
            self.image_processor = load_image_processor(folder, backend="pil", **settings)
            dtype = DTYPES[options.dtype]
            load = partial(load_network, AutoModelForImageTextToText, folder, device=self.device, dtype=dtype)
            self.vlm = RESIDENTS.take(self.model, ".", load, dtype).eval()

    def run(self, work: Work[CaptionOptions]) -> None:
        if work.options.prompt:
            self._write(work, Description(), work.options.prompt.strip())
        else:
            super().run(work)

    def batch_size(self, work: Work[CaptionOptions]) -> int:
        return work.options.caption_batch_size

    def batch_key(self, work: Work[CaptionOptions]) -> Hashable:
        return repr(work.options)

    def compute(self, works: Sequence[Work[CaptionOptions]]) -> Sequence[Description]:
        options = works[0].options
        text = instruction_of(options.instruction, options.structure, options.language)
        asked = [Question(self._frames(work), text) for work in works]
        answers = self._ask(asked, options)
        described = [Description(answer.raw, one.indices, answer.tokens) for one, answer in zip(asked, answers, strict=True)]
        return self._rewritten(works, described) if options.rewrite == "next" else described

    def _rewritten(self, works: Sequence[Work[CaptionOptions]], described: Sequence[Description]) -> list[Description]:
        """The model's prompts of what comes next, from the end of each video and its description."""
        options = works[0].options
        asked = []
        for work, description in zip(works, described, strict=True):
            caption = self._prompt(work, description.raw, options.structure)
            request = fill(options.rewrite_request, caption, prompt_of(work), options.language)
            asked.append(Question(self._ending(work), request))
        return [
            Description(
                answer.raw,
                one.frames,
                (one.tokens[0] + answer.tokens[0], one.tokens[1] + answer.tokens[1]),
                {"description": one.raw, "request": question.text, "ending": question.indices},
            )
            for one, question, answer in zip(described, asked, self._ask(asked, options), strict=True)
        ]

    def write(self, work: Work[CaptionOptions], result: Description) -> None:
        structure = [] if work.options.rewrite == "next" else work.options.structure
        self._write(work, result, self._prompt(work, result.raw, structure, work.options.prefix))

    def _prompt(self, work: Work[CaptionOptions], raw: str, structure: Sequence[str], prefix: str = "") -> str:
        """The prompt made of an answer of the model. Raises ItemError if nothing is left of it."""
        if structure and not is_structured(raw):
            reason = (
                f"the model's description of {video_path(work)} is not the JSON that was asked for, and is taken as prose"
            )
            log("warning", id=work.item.id, reason=reason)
        if prompt := prompt_from(raw, prefix, structure):
            return prompt
        raise ItemError(
            f"the model's description of {video_path(work)} is empty after cleaning ({raw!r})",
            "give a prompt, or another instruction",
        )

    def _frames(self, work: Work[CaptionOptions]) -> list[Frame]:
        """The frames that the model sees of an item."""
        path = video_path(work)
        if path.suffix.lower() in IMAGE_ENDINGS:
            return [Frame(0, 0.0, read_image(path))]
        return sample(path, work.options.num_segments, work.options.include_last)

    def _ending(self, work: Work[CaptionOptions]) -> list[Frame]:
        """The frames of the end of an item's video."""
        path = video_path(work)
        is_image = path.suffix.lower() in IMAGE_ENDINGS
        return self._frames(work) if is_image else ending(path, work.options.ending_frames)

    def _ask(self, questions: Sequence[Question], options: CaptionOptions) -> list[Answer]:
        """The model's answers. Questions of as many tokens and pixels are answered together, so that nothing is padded."""
        each = [self.inputs(one.frames, one.text) for one in questions]
        alike: dict[Hashable, list[int]] = {}
        for number, inputs in enumerate(each):
            alike.setdefault(tuple(value.shape for value in inputs.values()), []).append(number)
        answers: dict[int, Answer] = {}
        for numbers in alike.values():
            found = self._generate([each[number] for number in numbers], options)
            answers |= dict(zip(numbers, found, strict=True))
        return [answers[number] for number in range(len(questions))]

    def _generate(self, each: Sequence[Mapping[str, torch.Tensor]], options: CaptionOptions) -> list[Answer]:
        """The model's answers to inputs of one shape."""
        import torch

        inputs = {name: torch.cat([one[name] for one in each]) for name in each[0]}
        settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": options.max_new_tokens}
        if len(each) > 1:  # the keys and values of a batch are many: they are written in place, not copied for each token
            settings |= {"cache_implementation": "static", "disable_compile": True}
        output = self.vlm.generate(**inputs, **settings)
        given = inputs["input_ids"].shape[1]
        texts = [up_to_end(ids, self.vlm.generation_config.eos_token_id) for ids in output[:, given:].tolist()]
        return [Answer(self.tokenizer.decode(ids, skip_special_tokens=True), (given, len(ids))) for ids in texts]

    def inputs(self, frames: Sequence[Frame], instruction: str) -> dict[str, torch.Tensor]:
        """The model's inputs for N frames: input_ids and attention_mask [1, L], the pixels, and what goes with them.

        Raises ItemError for an instruction that has a visual token.
        """
        traits, tokenizer = self.traits, self.tokenizer
        images = [frame.rgb for frame in frames]
        pixels = self.image_processor(images, return_tensors="pt", **traits.settings)
        counts = self._counts(pixels, len(images))
        text = question(traits, tokenizer, [frame.time for frame in frames], counts, instruction)
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        visual = tokens["input_ids"] == tokenizer.convert_tokens_to_ids(traits.token(tokenizer, traits.visual))
        if int(visual.sum()) != sum(counts):
            raise ItemError(
                f"the instruction {instruction!r} gives a chat with {int(visual.sum())} visual tokens for {sum(counts)}",
                f"leave {traits.token(tokenizer, traits.visual)} out of it",
            )
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        inputs |= {name: pixels[name] for name in PIXELS if name in pixels}
        if traits.type_ids:
            inputs[traits.type_ids] = visual.long()
        return {
            name: value.to(self.device, self.vlm.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _counts(self, pixels: Mapping[str, torch.Tensor], images: int) -> list[int]:
        """The number of visual tokens of each image."""
        if self.traits.count:
            return [self.traits.count(self.vlm.config.to_dict())] * images
        return (pixels["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist()

    def _write(self, work: Work[CaptionOptions], description: Description, prompt: str) -> None:
        fields = {
            "model": work.item.model,
            "family": "vlm",
            "variant": "",
            "weights": work.weights,
            "raw": description.raw,
            "prompt": prompt,
            "frames": description.frames,
            "tokens": {"in": description.tokens[0], "out": description.tokens[1]},
            **description.further,
        }
        write_index(work.output, "caption", fields)


def video_path(work: Work[CaptionOptions]) -> Path:
    """The file of an item's video or image."""
    source = work.input("video")
    return source.member(".mp4") if isinstance(source, Artifact) else source


def prompt_of(work: Work[CaptionOptions]) -> str:
    """The prompt that an item's video was generated of; "" for a user's own video."""
    source = work.input("video")
    return source.fields.get("prompt", "") if isinstance(source, Artifact) else ""


def up_to_end(ids: Sequence[int], end: int | Sequence[int] | None) -> Sequence[int]:
    """Token ids up to the first that ends a text. What follows is padding, where other texts of a batch are longer."""
    ends = {end} if isinstance(end, int) else set(end or ())
    length = next((number for number, one in enumerate(ids, 1) if one in ends), len(ids))
    return ids[:length]


def question(traits: Traits, tokenizer: Any, times: Sequence[float], counts: Sequence[int], instruction: str) -> str:
    """The chat that asks an instruction about frames: their `times` in seconds, and the visual tokens of each, `counts`."""
    return traits.expand(chat(traits, tokenizer, tuple(times), instruction), tokenizer, times, counts)


def traits_of(folder: Path) -> Traits:
    """How the model in a folder takes frames. `weights.check` has refused a kind that is not in the table."""
    return TRAITS[read_config(folder / "config.json")["model_type"]]


def with_template(tokenizer: Any, folder: Path, path: str) -> Any:
    """A tokenizer with the chat template in a file, if one is named, or in the processor's file, if it has none itself."""
    template = read_text(path) if path else tokenizer.chat_template or template_of_processor(folder)
    if template == tokenizer.chat_template:
        return tokenizer
    own = copy.copy(tokenizer)  # the loaded one is shared by runs with other templates
    own.chat_template = template
    return own


def video_settings(folder: Path) -> dict[str, Any]:
    """Size, mean and standard deviation of the checkpoint's video processor; empty if it has none."""
    paths = {name: folder / f"{name}_config.json" for name in ("video_preprocessor", "processor")}
    configs = {name: read_config(path) for name, path in paths.items() if path.is_file()}
    config = configs.get("video_preprocessor") or configs.get("processor", {}).get("video_processor", {})
    return {name: value for name, value in {**VIDEO_DEFAULTS, **config}.items() if name in USED} if config else {}
