"""Encode for FRESCO: a prompt and the keyframes of a video become embeddings, latents, control maps and their flow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, DPTForDepthEstimation

from stages.media.flow import consistent, correspondence, grid, sample
from stages.media.members import read_member
from stages.media.probe import probe
from stages.media.read import frames
from stages.media.select import pick
from stages.models.fresco.control import HED, depth, soft_edges
from stages.models.fresco.options import FAMILY, batches
from stages.models.fresco.raft import RAFT
from stages.models.shared.loading import DTYPES, load_image_processor, load_network, load_tokenizer, loading
from stages.models.shared.origin import check_beyond, model_fields
from stages.models.shared.picture_vae import encoded, load_vae
from stages.models.shared.prompt import prompt_of
from stages.models.shared.text import embed, warn_of_cut
from stages.models.shared.words import warn_of_unknown_words
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

SIDE = 64  # of what both sides are multiples: the U-Net's lowest level has a place for so many pixels
OTHER_COLOUR = 0.25 * 255  # mean difference of what a flow brings together, from which on it is not trusted


class Encode(Worker):
    """Writes `encoded`: what is described there of keyframes."""

    def check(self, work: Work) -> None:
        prompt_of(work)
        frames, control = work.inputs.get("image"), work.options["controlnet_type"]
        if not isinstance(frames, Artifact) or frames.kind != "frames":
            raise ItemError(f"item {work.item.id} has no keyframes", "give what extract_frames wrote")
        size = frames.fields["width"], frames.fields["height"]
        if any(side % SIDE or side < 2 * SIDE for side in size):
            remedy = f"take multiples of {SIDE}, {2 * SIDE} and more: --fit short --multiple {SIDE}"
            raise ItemError(f"the frames of {frames.path} are {size[0]}*{size[1]}", remedy)
        check_beyond(FAMILY, self.model, work.options)
        if control == "canny" and not all("canny" in frame for frame in frames.fields["frames"]):
            raise ItemError(f"{frames.path} has no hard edges", "extract its frames with --canny")

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load text model, VAE and what makes the control maps and finds the flow. Raises JobError."""
        folder, control = self.model.folder(), options["controlnet_type"]
        with loading(self.model):
            self.tokenizer = load_tokenizer(folder / "tokenizer")
            self.text = load_network(CLIPTextModel, folder, "text_encoder", dtype=DTYPES[options["dtype"]])
            if control == "hed":
                self.net = HED.load(folder / "hed").to(self.device)
            elif control == "depth":
                self.net = load_network(DPTForDepthEstimation, folder, "depth").to(self.device).eval()
                self.processor = load_image_processor(folder / "depth", use_fast=False)
            raft = options["flow"] == "raft"
            self.correspondence = RAFT.load(folder / "raft").to(self.device).correspondence if raft else correspondence
        self.text.to(self.device).eval()
        self.vae = load_vae(self.model, self.device)

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        keys, options = work.inputs["image"], work.options
        (prompt, raw), negative = prompt_of(work), options["negative_prompt"]
        prompt += options["prompt_suffix"]
        warn_of_unknown_words(self.tokenizer, prompt, work.item.id)
        warn_of_cut(self.tokenizer, self.text, prompt, work.item.id)
        frames = [read_member(keys, frame["suffix"]) for frame in keys.fields["frames"]]
        together = batches(len(frames), options["batch_size"])
        fields = {
            **model_fields(self.model, work),
            **{name: keys.fields[name] for name in ("width", "height")},
            "num_frames": len(frames),
            "frames": keys.fields["frames"],
            "batches": together,
            "pairs": (pairs := sorted({pair for batch in together for pair in ring(batch)})),
            "control": options["controlnet_type"],
            "prompt": prompt,
            "negative_prompt": negative,
            "raw": raw,
        }
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        tensors = {
            "prompt_embeds": embed(self.tokenizer, self.text, [prompt]),
            "negative_prompt_embeds": embed(self.tokenizer, self.text, [negative]),
            "image_latents": torch.cat([latent(self.vae, frame) for frame in pixels]).transpose(0, 1)[None],
            "pixels": pixels,
            "control": torch.from_numpy(self._control(keys, frames, options["controlnet_type"])),
            **flows(frames, pairs, self.correspondence),
        }
        if options["masks"]:
            tensors["masks"] = masks_of(Path(options["masks"]), keys)
        write_tensors(work.output, "encoded", fields, tensors)

    def _control(self, keys: Artifact, frames: Sequence[np.ndarray], control: str) -> np.ndarray:
        if control == "canny":
            return np.stack([read_member(keys, frame["canny"])[..., 0] for frame in keys.fields["frames"]])
        if control == "hed":
            return soft_edges(self.net, frames, self.device)
        return depth(self.net, self.processor, frames, self.device)


def latent(vae: AutoencoderKL, frame: torch.Tensor) -> torch.Tensor:
    """Scaled latents [1, 4, h, w] of a frame, uint8 [3, H, W]."""
    return encoded(vae, frame[None].float() / 127.5 - 1)


def masks_of(video: Path, keys: Artifact) -> torch.Tensor:
    """The masks of keyframes, uint8 [K, H, W], out of a video with one of each frame. Raises ItemError for too few."""
    places = [frame["index"] for frame in keys.fields["frames"]]
    masks = pick(frames(probe(video)), places)
    if masks[-1].index < places[-1]:
        raise ItemError(f"{video} has {masks[-1].index + 1} masks, and the clip more frames", "give a mask of each frame")
    size = keys.fields["width"], keys.fields["height"]
    seen = [cv2.resize(mask.rgb[..., 0], size, interpolation=cv2.INTER_AREA) for mask in masks]
    return torch.from_numpy(np.stack(seen))


def ring(batch: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The neighbours in a batch; the last frame's is the first."""
    yield from pairwise([*batch, batch[0]])


def flows(
    frames: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    correspondence: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, torch.Tensor]:
    """For each pair (a, b) of frames the flow from a to b and back, and where neither the way back nor the colour agrees.

    `correspondence(a, b)` gives the map of a into b, as that of `stages.media.flow` does.
    """
    ways: dict[str, list[np.ndarray]] = {}
    for a, b in pairs:
        there, back = correspondence(frames[a], frames[b]), correspondence(frames[b], frames[a])
        for name, own, other, (here, seen) in (
            ("forward", there, back, (frames[a], frames[b])),
            ("backward", back, there, (frames[b], frames[a])),
        ):
            alike = cv2.absdiff(sample(seen, own), here).mean(axis=-1) <= OTHER_COLOUR
            ways.setdefault(f"flow_{name}", []).append((own - grid(own.shape)).transpose(2, 0, 1))
            ways.setdefault(f"occluded_{name}", []).append(~(consistent(own, other) & alike))
    tensors = {name: torch.from_numpy(np.stack(maps)) for name, maps in ways.items()}
    return {name: tensor.half() if tensor.is_floating_point() else tensor.byte() for name, tensor in tensors.items()}
