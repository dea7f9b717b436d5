"""What the files between stages hold: every kind with its fields, members and tensors, and the check of a file against it.

Fields are described as JSON schemas. A file may come from anywhere, so everything in it is checked before it is used.
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
    """A field of an artifact: what it says, the JSON schema of its value, and whether every artifact of the kind has it."""

    help: str
    schema: Mapping[str, Any]
    required: bool = True


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of an artifact. A letter in `shape` stands for one size throughout the file, "" for any size above 0."""

    name: str
    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...]
    help: str
    required: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of artifact: its `fields` by name, and `members`, the files of an index, with what each holds."""

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
    """An object with these properties, and no others where it is closed."""
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

MODEL_FIELDS = {
    "model": Field("name of the model, as declared or as given", TEXT),
    "family": Field("family of the model", TEXT),
    "variant": Field("variant of the family", TEXT),
    "weights": Field("digest of the weights that the stage used", TEXT),
}
WIDTH, HEIGHT = Field("pixels", SIDE), Field("pixels", SIDE)
SIZE_FIELDS = {"width": WIDTH, "height": HEIGHT, "num_frames": Field("number of frames", COUNT)}
RATE_FIELDS = {"fps": Field('frames per second, as a fraction in text: "24/1"', RATE)}
PROMPT_FIELDS = {"prompt": Field("prompt", TEXT), "raw": Field("raw caption", TEXT)}
SEED_FIELDS = {"seed": Field("seed of the noise", SEED)}
SOURCE_FIELD = Field("facts of the video: stream, size, orientation, rate, duration, declared frames, codec, colour", SOURCE)
HALF_OR_FULL = ("BF16", "F16", "F32")

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "frames",
            1,
            ".json",
            "Frames of a video as PNG files: upright, square pixels, 8-bit RGB, resized to the size that was asked for.",
            {
                "width": WIDTH,
                "height": HEIGHT,
                "select": Field("which frames: last, tail, segments, first, keyframes or all", TEXT),
                "frames": Field(
                    "per frame: index in the video, time in seconds, suffix of its PNG, and canny, of its edges", FRAMES
                ),
                "source": SOURCE_FIELD,
            },
            members={
                "/NNNNNN.png": "a frame, by its index in the video",
                "/NNNNNN.canny.png": "its hard edges, where asked for",
            },
        ),
        Kind(
            "caption",
            1,
            ".json",
            "A description of a video and the prompt made of it.",
            {
                "raw": Field("what the model said, untouched; empty when the prompt was given", TEXT),
                "prompt": Field("the prompt for the generator: prefix and cleaned description, or the given one", TEXT),
                "frames": Field("indices of the video's frames that the model saw", array(INDEX)),
                "tokens": Field(
                    "number of tokens that went into the model and came out of it", record({"in": COUNT, "out": COUNT})
                ),
                **MODEL_FIELDS,
            },
        ),
        Kind(
            "encoded",
            1,
            ".safetensors",
            "All that the denoiser needs: prompt embeddings, condition latents, mask.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                **PROMPT_FIELDS,
                "negative_prompt": Field("negative prompt", TEXT),
                "prompts": Field("of longlive: the prompt of the source, and those of what follows", array(TEXT), False),
                "switches": Field("of longlive: latent frame from which each further prompt counts", array(INDEX), False),
                "latent_frames": Field("of longlive: latent frames in all", {**COUNT, "minimum": 1}, False),
                "block": Field("of longlive: latent frames that are denoised together", {**COUNT, "minimum": 1}, False),
                "source_frames": Field("of longlive: frames of the source at the beginning", COUNT, False),
                "loop": Field("of dynamicrafter: whether the clip ends where it began", FLAG, False),
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
                "batches": Field(
                    "of fresco: keyframes that are translated together, by position",
                    array({**array(INDEX), "minItems": 1}),
                    False,
                ),
                "pairs": Field("of fresco: pairs of keyframes that have a flow", array(PAIR), False),
                "control": Field("of fresco: what the ControlNet is shown: hed, canny or depth", TEXT, False),
            },
            tensors=(
                TensorSpec(
                    "prompt_embeds", ("P", "L", "D"), HALF_OR_FULL, "text embeddings, a row per prompt; padding is zero"
                ),
                TensorSpec("negative_prompt_embeds", (1, "L", "D"), HALF_OR_FULL, "the same of the negative prompt", False),
                TensorSpec("image_embeds", (1, "N", "D"), HALF_OR_FULL, "tokens of the picture", False),
                TensorSpec("negative_image_embeds", (1, "N", "D"), HALF_OR_FULL, "the same of plain grey", False),
                TensorSpec("image_latents", (1, "C", "", "h", "w"), ("F32",), "normalised latents of the condition", False),
                TensorSpec(
                    "mask", (1, "", "T", "h", "w"), ("U8",), "1 where the condition is known, 0 where it is made", False
                ),
                TensorSpec("pixels", ("K", 3, "H", "W"), ("U8",), "keyframes of the source", False),
                TensorSpec("control", ("K", "H", "W"), ("U8",), "what a ControlNet is shown of them", False),
                TensorSpec("masks", ("K", "H", "W"), ("U8",), "255 where something is in front in them", False),
                TensorSpec("flow_forward", ("M", 2, "H", "W"), ("F16",), "flow of pairs of keyframes, in pixels", False),
                TensorSpec("flow_backward", ("M", 2, "H", "W"), ("F16",), "the same from the second to the first", False),
                TensorSpec("occluded_forward", ("M", "H", "W"), ("U8",), "1 where that flow cannot be trusted", False),
                TensorSpec("occluded_backward", ("M", "H", "W"), ("U8",), "the same from the second to the first", False),
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
                "source_frames": Field("of longlive: frames of the source at the beginning", COUNT, False),
                "digest": Field("of longlive: of an unfinished film, what binds it to its item", TEXT, False),
                "loop": Field("of dynamicrafter: whether the clip ends where it began", FLAG, False),
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
            },
            tensors=(TensorSpec("latents", (1, "C", "T", "h", "w"), ("F32",), "final latents"),),
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
                    "colour, saturation and sharpness of the first frame, the last one and all: tells drift",
                    {"type": "object"},
                ),
                "frames": Field("of fresco: the keyframes, as extract_frames lists them", FRAMES, False),
            },
            members={
                ".mp4": "the clip, H.264",
                ".last.png": "the last frame, lossless: what the next link starts from",
                ".mkv": "the clip, lossless (FFV1), where concat has to encode it again",
                ".gif": "the clip as a GIF, where asked for",
                "/NNNNNN.png": "its frames, where asked for",
                ".sheet.png": "a contact sheet, where asked for",
            },
        ),
        Kind(
            "propagated",
            1,
            ".json",
            "Translated frames, keys and those between them, of a clip or a part of it, as PNG files of 8-bit RGB.",
            {
                "width": WIDTH,
                "height": HEIGHT,
                "frames": Field("per frame: index in the video, time in seconds, suffix of its PNG", FRAMES),
                "keys": Field("indices of the clip's keys", array(INDEX)),
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
                "parts": Field("per part: file name, frames in the film", array(record({"name": TEXT, "frames": COUNT}))),
            },
            members={".mp4": "the film, H.264", "/prompts_log.txt": "seed, source, caption and prompt of each link"},
        ),
    )
}


def disagreement(fields: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """The first thing in which fields, each as its schema asks, do not go with one another or with the `sizes` of the
    tensors, by the letters that stand for them; empty where all goes together."""
    if "fps" in fields and not 1 / FASTEST <= Fraction(fields["fps"]) <= FASTEST:
        return f"fps is {fields['fps']}, and what is between 1/{FASTEST} and {FASTEST} can be shown"
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
    if "num_frames" in fields and len(fields.get("frames", range(frames))) != frames:
        return f"num_frames is {frames} and it lists {len(fields['frames'])} frames"
    if any(max(positions) >= frames for name in ("batches", "pairs") for positions in fields.get(name, ())):
        return f"it speaks of keyframes that are not among its {frames}"
    if "pairs" in fields and sizes.get("M", len(fields["pairs"])) != len(fields["pairs"]):
        return f"it has {len(fields['pairs'])} pairs and the flow of {sizes['M']}"
    if "prompts" in fields and not sizes.get("P") == len(fields["prompts"]) == len(fields.get("switches", ())) + 1:
        return "its prompts, their embeddings and its switches are not of one number"
    return ""


BYTES = {"type": "integer", "minimum": 0, "maximum": 2**63}
ITEM_BYTES = {  # of the dtypes of safetensors
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
HEAD = record({"kinemake.kind": TEXT, "kinemake.version": {"type": "integer"}, "fields": {"type": "object"}}, closed=False)
# The header of a safetensors file; the library's own rules.
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
    """The check of a record: what an artifact of the kind `name` says of itself, the "head" that all kinds share, or the
    "header" of a safetensors file."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    exact = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 64.0 is none
    return extend(Draft202012Validator, type_checker=exact)({"header": HEADER, "head": HEAD}.get(name) or _description(name))


def _description(name: str) -> dict[str, Any]:
    """What an artifact of a kind says of itself."""
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
    return record({"fields": fields}, {"members": members, "provenance": provenance}, closed=False)
