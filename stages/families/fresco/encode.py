"""Encode for FRESCO: a prompt and the keyframes of a video to embeddings, latents, control maps and optical flow."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import AutoModelForSemanticSegmentation, CLIPTextModel, DPTForDepthEstimation

from stages.families.fresco.control import HED, background_class, depth, foreground, soft_edges
from stages.families.fresco.options import FAMILY, EncodeOptions, keyframe_batches
from stages.families.fresco.raft import RAFT
from stages.families.shared.clip_text import embed
from stages.families.shared.item import check_against_model, check_past, encoded_fields, require_prompt
from stages.families.shared.loading import (
    DTYPES,
    load_image_processor,
    load_network,
    load_tokenizer,
    loading,
    logged,
)
from stages.families.shared.pixels import to_float
from stages.families.shared.sd_vae import encode_images, load_vae
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.media.flow import correspondence, grid, is_consistent, sample
from stages.media.members import read_member
from stages.media.probe import probe
from stages.media.read import frames
from stages.media.select import frames_at
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.components import Broken
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

SIDE = 64  # both sides are multiples of it: pixels per place of the U-Net's lowest level
MAX_COLOUR_ERROR = 0.25 * 255  # mean difference of two pixels above which the flow between them is unreliable


class Encode(Worker[EncodeOptions]):
    """Writes `encoded`: embeddings, latents, control maps, flow and masks of the keyframes."""

    def check(self, work: Work[EncodeOptions]) -> None:
        require_prompt(work)
        check_past(work, FAMILY, self.model.variant)
        frames, control = work.optional("image"), work.options.controlnet_type
        if not isinstance(frames, Artifact) or frames.kind != "frames":
            raise ItemError(f"item {work.item.id} has no keyframes", "give the frames that extract_frames wrote")
        size = frames.fields["width"], frames.fields["height"]
        if any(side % SIDE or side < 2 * SIDE for side in size):
            remedy = f"use multiples of {SIDE}, {2 * SIDE} and more: --fit short --multiple {SIDE}"
            raise ItemError(f"the frames of {frames.path} are {size[0]}*{size[1]}", remedy)
        check_against_model(FAMILY, self.model, work.options.values())
        if control == "canny" and not all("canny" in frame for frame in frames.fields["frames"]):
            raise ItemError(f"{frames.path} has no hard edges", "extract its frames with --canny")

    def load(self, options: EncodeOptions) -> None:
        """Load the text encoder, the VAE and the networks of control maps, masks and flow. Raises JobError."""
        folder, control = self.model.folder(), options.controlnet_type
        with loading(self.model):
            self.tokenizer = load_tokenizer(folder / "tokenizer")
            dtype = DTYPES[options.dtype]
            self.text = load_network(CLIPTextModel, folder, "text_encoder", self.device, dtype=dtype).eval()
            if control == "hed":
                self.net = logged("hed", lambda: HED.load(folder / "hed").to(self.device))
            elif control == "depth":
                self.net = load_network(DPTForDepthEstimation, folder, "depth", self.device).eval()
                self.processor = load_image_processor(folder / "depth", use_fast=False)
            if options.estimate_masks:
                self.segmenter = load_network(AutoModelForSemanticSegmentation, folder, "saliency", self.device).eval()
                if background_class(self.segmenter.config.id2label) is None:
                    raise Broken(f"the network in {folder / 'saliency'} has no class background", "convert with another one")
                # not cropped, because the masks are those of whole frames
                self.segmenter_processor = load_image_processor(folder / "saliency", backend="pil", do_center_crop=False)
            self.correspondence = correspondence
            if options.flow == "raft":
                raft = logged("raft", lambda: RAFT.load(folder / "raft").to(self.device))
                self.correspondence = raft.correspondence
        self.vae = load_vae(self.model, self.device)

    @torch.no_grad()
    def run(self, work: Work[EncodeOptions]) -> None:
        keyframes, options = work.artifact("image"), work.options
        prompt, raw = require_prompt(work)
        prompt += options.prompt_suffix
        warn_of_unread(self.tokenizer, prompt, self.text.config.max_position_embeddings, work.item.id)
        frames = [read_member(keyframes, frame["suffix"]) for frame in keyframes.fields["frames"]]
        batches = keyframe_batches(len(frames), options.keyframe_batch_size)
        pairs = sorted({pair for batch in batches for pair in cyclic_pairs(batch)})
        fields = encoded_fields(
            self.model,
            work,
            (keyframes.fields["width"], keyframes.fields["height"]),
            len(frames),
            prompt,
            raw,
            frames=keyframes.fields["frames"],
            batches=batches,
            pairs=pairs,
            control=options.controlnet_type,
        )
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        tensors = {
            "prompt_embeds": embed(self.tokenizer, self.text, [prompt]),
            "negative_prompt_embeds": embed(self.tokenizer, self.text, [options.negative_prompt]),
            "image_latents": torch.cat([encode_frame(self.vae, frame) for frame in pixels]).transpose(0, 1)[None],
            "pixels": pixels,
            "control": torch.from_numpy(self._control(keyframes, frames, options.controlnet_type)),
            **estimate_flows(frames, pairs, self.correspondence),
        }
        if options.masks:
            tensors["masks"] = read_masks(Path(options.masks), keyframes)
        elif options.estimate_masks:
            masks = foreground(self.segmenter, self.segmenter_processor, frames, self.device)
            tensors["masks"] = torch.from_numpy(masks)
        write_tensors(work.output, "encoded", fields, tensors)

    def _control(self, keyframes: Artifact, frames: Sequence[np.ndarray], control: str) -> np.ndarray:
        if control == "canny":
            return np.stack([read_member(keyframes, frame["canny"])[..., 0] for frame in keyframes.fields["frames"]])
        if control == "hed":
            return soft_edges(self.net, frames, self.device)
        return depth(self.net, self.processor, frames, self.device)


def encode_frame(vae: AutoencoderKL, frame: torch.Tensor) -> torch.Tensor:
    """Scaled latents [1, 4, h, w] of a frame, uint8 [3, H, W]."""
    return encode_images(vae, to_float(frame[None]))


def read_masks(video: Path, keyframes: Artifact) -> torch.Tensor:
    """The masks of K keyframes, uint8 [K, H, W], from a video with one mask per frame of the source.

    Raises ItemError for too few masks.
    """
    indices = [frame["index"] for frame in keyframes.fields["frames"]]
    masks = frames_at(frames(probe(video)), indices)
    if masks[-1].index < indices[-1]:
        raise ItemError(
            f"{video} has {masks[-1].index + 1} masks, fewer than the source has frames", "give one mask per frame"
        )
    size = keyframes.fields["width"], keyframes.fields["height"]
    resized = [cv2.resize(mask.rgb[..., 0], size, interpolation=cv2.INTER_AREA) for mask in masks]
    return torch.from_numpy(np.stack(resized))


def cyclic_pairs(batch: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each frame of a batch with the next, and the last with the first."""
    yield from pairwise([*batch, batch[0]])


def estimate_flows(
    frames: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    correspondence: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, torch.Tensor]:
    """Flow in both directions between the frames of each pair, float16 [P, 2, H, W], and its occlusions, uint8 [P, H, W].

    A pixel is occluded where forward and backward flow disagree, or the two colours do. `correspondence(a, b)` is the map of
    a into b, as `stages.media.flow.correspondence` gives it.
    """
    maps: dict[str, list[np.ndarray]] = {}
    for a, b in pairs:
        there, back = correspondence(frames[a], frames[b]), correspondence(frames[b], frames[a])
        for name, own, other, (source, target) in (
            ("forward", there, back, (frames[a], frames[b])),
            ("backward", back, there, (frames[b], frames[a])),
        ):
            similar = cv2.absdiff(sample(target, own), source).mean(axis=-1) <= MAX_COLOUR_ERROR
            maps.setdefault(f"flow_{name}", []).append((own - grid(own.shape)).transpose(2, 0, 1))
            maps.setdefault(f"occluded_{name}", []).append(~(is_consistent(own, other) & similar))
    tensors = {name: torch.from_numpy(np.stack(arrays)) for name, arrays in maps.items()}
    return {name: tensor.half() if tensor.is_floating_point() else tensor.byte() for name, tensor in tensors.items()}
