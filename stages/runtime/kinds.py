"""The kinds of artifacts: fields, members and tensors of each, and the validation of a file against them.

Fields are described by JSON schemas. A file may come from anywhere, so everything in it is validated before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

FAILED = "failed"


class Field(NamedTuple):
    """A field of an artifact: its meaning, the JSON schema of its value, and whether it is required."""

    help: str
    schema: Mapping[str, Any]
    required: bool = True


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of an artifact. A letter in `shape` is the same size throughout the file; "" is any size above 0."""

    name: str
    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...]
    help: str
    required: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of artifact. `fields` are by name; `members` maps the suffix of each file of an index to its content."""

    name: str
    version: int
    suffix: str
    help: str
    fields: Mapping[str, Field]
    tensors: tuple[TensorSpec, ...] = ()
    members: Mapping[str, str] = field(default_factory=dict)


TEXT = {"type": "string"}
SIDE = {"type": "integer", "minimum": 1, "maximum": 2**16}
COUNT = {"type": "integer", "minimum": 0, "maximum": 10**6}
INDEX = {"type": "integer", "minimum": 0, "maximum": 10**8}
SEED = {"type": "integer", "minimum": -(2**63), "maximum": 2**64}
SECONDS = {"type": "number", "minimum": 0, "maximum": 10**9}
FLAG = {"type": "boolean"}
RATE = {"type": "string", "pattern": r"^[1-9][0-9]{0,17}(/[1-9][0-9]{0,17})?\Z"}
FASTEST = 1000  # frames per second
SUFFIX = {"type": "string", "pattern": r"^(/[A-Za-z0-9_]+)?(\.[a-z0-9]+)+\Z"}


def array(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": 10**6}


def record(required: Mapping[str, Any], optional: Mapping[str, Any] = {}, closed: bool = True) -> dict[str, Any]:
    """Schema of an object with these properties. A closed one allows no others."""
    properties = {**required, **optional}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": not closed}


PAIR = {**array(INDEX), "minItems": 2, "maxItems": 2}
FRAMES = array(
    record(
        {"index": INDEX, "time": SECONDS, "suffix": SUFFIX},
        {"canny": SUFFIX},
        closed=False,
    )
)
SOURCE = record({"fps": RATE}, closed=False)

FIGURES = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
FEATURES = array({"type": "number"})
FIGURE_ROW = {"type": "object", "additionalProperties": {"type": ["number", "string", "null"]}}

MODEL_FIELDS = {
    "model": Field("name of the model, as declared or as given", TEXT),
    "family": Field("family of the model", TEXT),
    "variant": Field("variant of the family", TEXT),
    "weights": Field("digest of the weights that the stage used", TEXT),
}
WIDTH, HEIGHT = Field("pixels", SIDE), Field("pixels", SIDE)
SIZE_FIELDS = {"width": WIDTH, "height": HEIGHT, "num_frames": Field("number of frames", COUNT)}
RATE_FIELDS = {"fps": Field('frames per second, as text with a fraction: "24/1"', RATE)}
PROMPT_FIELDS = {"prompt": Field("prompt", TEXT), "raw": Field("raw caption", TEXT)}
SEED_FIELDS = {"seed": Field("seed of the noise", SEED)}
SOURCE_FIELD = Field("facts of the video: stream, size, orientation, rate, duration, declared frames, codec, colour", SOURCE)
PICK = record(
    {"take": {**COUNT, "minimum": 1}, "of": COUNT, "by": TEXT, "values": array({"type": ["number", "null"]})},
    {"failed": array({**COUNT, "minimum": 1})},
)
PART_FRAMES = Field(
    "of a film with several prompts: frames of each, in order, of longlive those of the source first",
    array({**COUNT, "minimum": 1}),
    False,
)
BLOCK_FIELD = Field(
    "of a film of blocks: number of latent frames in a block, which are denoised together", {**COUNT, "minimum": 1}, False
)
SOURCE_FRAMES = Field(
    "of a film of blocks: frames of the source, of longlive those at the beginning of the film", COUNT, False
)
PAST_TENSORS = (
    TensorSpec(
        "history", (1, "C", "", "h", "w"), ("F32",), "of helios: the latents that a next chunk reads, old ones first", False
    ),
    TensorSpec(
        "first_latent",
        (1, "C", 1, "h", "w"),
        ("F32",),
        "of helios: the first latent of the film",
        False,
    ),
)
REPEATED_FRAMES = Field("frames at its beginning that repeat the last ones of what it continues; 1 if absent", COUNT, False)
PART_PROMPTS = Field("of a film with several prompts: the prompt of each part, in order", array(TEXT), False)
HALF_OR_FULL = ("BF16", "F16", "F32")

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "frames",
            1,
            ".json",
            "Frames of a video as PNG files: upright, square pixels, 8-bit RGB, at the requested size.",
            {
                "width": WIDTH,
                "height": HEIGHT,
                "select": Field("which frames: last, tail, segments, first, keyframes or all", TEXT),
                "frames": Field(
                    "per frame: its index in the video, its time in seconds, the suffix of its PNG, and in canny the suffix "
                    "of its edge image",
                    FRAMES,
                ),
                "source": SOURCE_FIELD,
            },
            members={
                "/NNNNNN.png": "a frame, by its index in the video",
                "/NNNNNN.canny.png": "the Canny edges of a frame, if requested",
            },
        ),
        Kind(
            "caption",
            1,
            ".json",
            "A description of a video, and the prompt derived from it.",
            {
                "raw": Field("unedited output of the model; empty if the prompt was given", TEXT),
                "prompt": Field("the prompt for the generator: prefix and cleaned description, or the given one", TEXT),
                "frames": Field("indices of the video's frames that the model saw", array(INDEX)),
                "tokens": Field("number of input and output tokens of the model", record({"in": COUNT, "out": COUNT})),
                "description": Field(
                    "with rewrite: next, the unedited description that the request quotes; raw is the answer", TEXT, False
                ),
                "request": Field("with rewrite: next, what the model was asked for the prompt", TEXT, False),
                "ending": Field("with rewrite: next, indices of the frames that were shown with it", array(INDEX), False),
                **MODEL_FIELDS,
            },
        ),
        Kind(
            "encoded",
            1,
            ".safetensors",
            "The inputs of the denoiser: prompt embeddings, condition latents, mask.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                **PROMPT_FIELDS,
                "negative_prompt": Field("negative prompt", TEXT),
                "prompts": Field(
                    "of a film with several prompts: the prompts in order; longlive lists the prompt of the source first",
                    array(TEXT),
                    False,
                ),
                "repeated_frames": REPEATED_FRAMES,
                "padding": Field("of wan: zeros, if its condition is made for the LoRAs of SVI 2 Pro", TEXT, False),
                "switches": Field("first latent frame of each further prompt", array(INDEX), False),
                "latent_frames": Field("of a film of blocks: total number of latent frames", {**COUNT, "minimum": 1}, False),
                "block": BLOCK_FIELD,
                "source_frames": SOURCE_FRAMES,
                "loop": Field("of dynamicrafter: whether the clip ends where it began", FLAG, False),
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
                "batches": Field(
                    "of fresco: positions of the keyframes of each batch",
                    array({**array(INDEX), "minItems": 1}),
                    False,
                ),
                "pairs": Field("of fresco: pairs of keyframes that have a flow", array(PAIR), False),
                "control": Field("of fresco: type of the ControlNet's control maps: hed, canny or depth", TEXT, False),
            },
            tensors=(
                TensorSpec(
                    "prompt_embeds", ("P", "L", "D"), HALF_OR_FULL, "text embeddings, one row per prompt, zero-padded"
                ),
                TensorSpec(
                    "negative_prompt_embeds", (1, "L", "D"), HALF_OR_FULL, "text embeddings of the negative prompt", False
                ),
                TensorSpec("image_embeds", (1, "N", "D"), HALF_OR_FULL, "image tokens of the first frame", False),
                TensorSpec("negative_image_embeds", (1, "N", "D"), HALF_OR_FULL, "image tokens of a grey image", False),
                TensorSpec("image_latents", (1, "C", "", "h", "w"), ("F32",), "normalised condition latents", False),
                *PAST_TENSORS,
                TensorSpec(
                    "mask", (1, "", "T", "h", "w"), ("U8",), "1 where the condition is given, 0 where it is generated", False
                ),
                TensorSpec("condition", (1, "E"), ("F32",), "of text2video: further condition, a vector", False),
                TensorSpec("pixels", ("K", 3, "H", "W"), ("U8",), "keyframes of the source", False),
                TensorSpec("control", ("K", "H", "W"), ("U8",), "control map of each keyframe", False),
                TensorSpec("masks", ("K", "H", "W"), ("U8",), "foreground mask of each keyframe: 255 is foreground", False),
                TensorSpec(
                    "flow_forward",
                    ("M", 2, "H", "W"),
                    ("F16",),
                    "flow from the first to the second keyframe of a pair, in pixels",
                    False,
                ),
                TensorSpec(
                    "flow_backward", ("M", 2, "H", "W"), ("F16",), "flow from the second to the first, in pixels", False
                ),
                TensorSpec("occluded_forward", ("M", "H", "W"), ("U8",), "1 where flow_forward is unreliable", False),
                TensorSpec("occluded_backward", ("M", "H", "W"), ("U8",), "1 where flow_backward is unreliable", False),
            ),
        ),
        Kind(
            "latents",
            1,
            ".safetensors",
            "Final latents in the model's normalised space.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                **PROMPT_FIELDS,
                **SEED_FIELDS,
                "repeated_frames": REPEATED_FRAMES,
                "block": BLOCK_FIELD,
                "source_frames": SOURCE_FRAMES,
                "part_frames": PART_FRAMES,
                "part_prompts": PART_PROMPTS,
                "digest": Field("of a film of blocks: digest that binds an unfinished film to its item", TEXT, False),
                "loop": Field("of dynamicrafter: whether the clip ends where it began", FLAG, False),
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
            },
            tensors=(TensorSpec("latents", (1, "C", "T", "h", "w"), ("F32",), "final latents"), *PAST_TENSORS),
        ),
        Kind(
            "clip",
            1,
            ".json",
            "A clip as pixels.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                **RATE_FIELDS,
                **PROMPT_FIELDS,
                **SEED_FIELDS,
                "statistics": Field(
                    "colour, saturation and sharpness of the first frame, the last frame and all frames: shows drift",
                    {"type": "object"},
                ),
                "part_frames": PART_FRAMES,
                "part_prompts": PART_PROMPTS,
                "repeated_frames": REPEATED_FRAMES,
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
                "pick": Field(
                    "of a picked take: its number, the number of takes, the figure that decided and its value in each take, "
                    "and the numbers of the takes that failed",
                    PICK,
                    False,
                ),
            },
            members={
                ".mp4": "the clip, H.264",
                ".last.png": "the last frame, lossless: the next link starts from it",
                ".mkv": "the clip, lossless (FFV1), if concat has to encode it again",
                ".gif": "the clip as a GIF, if requested",
                "/NNNNNN.png": "a frame of the clip, if requested",
                ".sheet.png": "a contact sheet, if requested",
            },
        ),
        Kind(
            "propagated",
            1,
            ".json",
            "Translated frames (keyframes and the frames between them) of a clip or a part of it, as 8-bit RGB PNG files.",
            {
                "width": WIDTH,
                "height": HEIGHT,
                "frames": Field("per frame: index in the video, time in seconds, suffix of its PNG", FRAMES),
                "keys": Field("indices of the clip's keyframes", array(INDEX)),
                "source": SOURCE_FIELD,
            },
            members={"/NNNNNN.png": "a frame, by its index in the video"},
        ),
        Kind(
            "film",
            1,
            ".mp4",
            "The finished film, encoded once, and its provenance.",
            {
                **SIZE_FIELDS,
                **RATE_FIELDS,
                "parts": Field(
                    "per part, a clip or of longlive the frames of a prompt: file name, number of frames, prompt, and "
                    "whether it is a cut, which does not go on from the part before",
                    array(record({"name": TEXT, "frames": COUNT}, {"prompt": TEXT, "cut": FLAG})),
                ),
            },
            members={
                ".mp4": "the film, H.264",
                ".gif": "the clip as a GIF, if requested",
                ".sheet.png": "a contact sheet of the clip, if requested",
                "/NNNNNN.png": "a frame of the clip, if requested",
                "/prompts_log.txt": "seed, source, caption and prompt of each link",
            },
        ),
        Kind(
            "scores",
            1,
            ".json",
            "Figures of a film: docs/scores.md defines each.",
            {
                **SIZE_FIELDS,
                **RATE_FIELDS,
                "scores": Field("what was measured: groups of figures", array(TEXT)),
                "figures": Field("the figures by name; null for a figure that this film does not have", FIGURES),
                "details": Field(
                    "by group, a row per place that its figures summarise: a seam, a part of the film",
                    {"type": "object", "additionalProperties": array(FIGURE_ROW)},
                ),
                "flow": Field("whose flow told flicker from motion: source or film", TEXT, False),
                "features": Field("of a network: the mean of the features of the frames", FEATURES, False),
            },
        ),
    )
}


def disagreement(fields: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """The first contradiction within valid fields, or between them and tensor sizes (by letter); "" if there is none."""
    if "fps" in fields and not 1 / FASTEST <= Fraction(fields["fps"]) <= FASTEST:
        return f"fps is {fields['fps']}and must be between 1/{FASTEST} and {FASTEST}"
    width, height, frames = (fields.get(name, 0) for name in ("width", "height", "num_frames"))
    for letter, name in (("W", "width"), ("H", "height"), ("K", "num_frames")):
        if sizes.get(letter, fields.get(name)) != fields.get(name):
            return f"{name} is {fields[name]} and its tensors have {sizes[letter]}"
    if "h" in sizes:
        h, w = sizes["h"], sizes["w"]
        if height % h or width % w or height // h != width // w:
            return f"its latents are {w}x{h}, which does not go with {width}x{height} pixels"
    if sizes.get("T", 0) > frames:
        return f"num_frames is {frames} and its latents have {sizes['T']} frames"
    if sum(fields.get("part_frames", [frames])) != frames:
        return f"num_frames is {frames} and its parts have {sum(fields['part_frames'])}"
    if "part_prompts" in fields and len(fields["part_prompts"]) != len(fields.get("part_frames", ())):
        return "its numbers of parts and of their prompts do not match"
    if "num_frames" in fields and len(fields.get("frames", range(frames))) != frames:
        return f"num_frames is {frames} and it lists {len(fields['frames'])} frames"
    if any(max(positions) >= frames for name in ("batches", "pairs") for positions in fields.get(name, ())):
        return f"its batches or pairs name keyframes beyond its {frames}"
    if "pairs" in fields and sizes.get("M", len(fields["pairs"])) != len(fields["pairs"]):
        return f"it has {len(fields['pairs'])} pairs and the flow of {sizes['M']}"
    if "prompts" in fields and not sizes.get("P") == len(fields["prompts"]) == len(fields.get("switches", ())) + 1:
        return "its numbers of prompts, prompt embeddings and switches do not match"
    return ""


BYTES = {"type": "integer", "minimum": 0, "maximum": 2**63}
ITEM_BYTES = {  # by safetensors dtype
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
HEAD = record({"kinemake.kind": TEXT, "kinemake.version": {"type": "integer"}, "fields": {"type": "object"}}, closed=False)
# The header of a safetensors file, by the rules of the library.
HEADER = {
    "type": "object",
    "properties": {"__metadata__": {"type": "object", "additionalProperties": TEXT}},
    "additionalProperties": record(
        {
            "dtype": {"enum": [*ITEM_BYTES]},
            "shape": {"type": "array", "items": BYTES, "maxItems": 16},
            "data_offsets": {"type": "array", "items": BYTES, "minItems": 2, "maxItems": 2},
        }
    ),
}


@cache
def validator(name: str) -> Validator:
    """JSON schema validator for a part of a file.

    `name` is a kind (its description), "head" (the part that all kinds share) or "header" (that of a safetensors file).
    """
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    exact = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 64.0 is none
    return extend(Draft202012Validator, type_checker=exact)({"header": HEADER, "head": HEAD}.get(name) or _description(name))


def _description(name: str) -> dict[str, Any]:
    """JSON schema for the description of an artifact of a kind."""
    if name == FAILED:
        fields = record({"stage": TEXT, "item": TEXT, "reason": TEXT}, {"remedy": TEXT})
    else:
        declared = KINDS[name].fields
        required = {field: spec.schema for field, spec in declared.items() if spec.required}
        optional = {field: spec.schema for field, spec in declared.items() if not spec.required}
        fields = record(required, optional, closed=False)
    member = record({"sha256": {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}, "bytes": BYTES})
    members = {"type": "object", "propertyNames": SUFFIX, "additionalProperties": member}
    provenance = {"type": "array", "items": record({"key": TEXT}, closed=False)}
    programs = {"type": "object", "additionalProperties": {"type": "object"}}
    parts = {"members": members, "provenance": provenance, "programs": programs}
    return record({"fields": fields}, parts, closed=False)


def violation(name: str, value: Any) -> str:
    """The first violation that the validator `name` finds in `value`, as an error text; "" if there is none."""
    error = next(validator(name).iter_errors(value), None)
    return "" if error is None else f"{'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message[:200]}"
