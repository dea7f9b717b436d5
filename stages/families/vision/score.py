"""Score a film by what a network sees in its frames.

Consistency is VBench's formula (Huang et al. 2024, arXiv:2311.17982), of its subject consistency with DINO's features and of
its background consistency with CLIP's. Features are those that the libraries' models give: of CLIP and SigLIP the projected
image embedding, of DINOv2 the normalised class token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from stages.families.shared.loading import DTYPES, load_image_processor, load_network, load_tokenizer, loading
from stages.families.vision.options import WITH_TEXT, VisionOptions
from stages.media.probe import Source, frame_times, probe
from stages.media.read import frames
from stages.media.scores.worker import source_of, video_of
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.errors import ItemError
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import Work, Worker

DIGITS = 6  # of a figure and of a feature


class Score(Worker[VisionOptions]):
    """Writes `scores`: of clip and siglip alignment with the prompt and consistency, of dinov2 consistency, of depth the
    structure that the film keeps of its source."""

    def check(self, work: Work[VisionOptions]) -> None:
        if self.model.variant == "depth" and source_of(work) is None:
            raise ItemError(f"item {work.item.id} has no source", f"model {self.model.name} compares a film with one")

    def load(self, options: VisionOptions) -> None:
        """Load the network, and its image processor and tokenizer. Raises JobError."""
        from transformers import AutoModel, AutoModelForDepthEstimation

        folder, dtype = self.model.folder(), DTYPES[options.dtype]
        kind = AutoModelForDepthEstimation if self.model.variant == "depth" else AutoModel
        with loading(self.model):
            self.processor = load_image_processor(folder, backend="pil")
            self.tokenizer = load_tokenizer(folder) if self.model.variant in WITH_TEXT else None
            load = partial(load_network, kind, folder, device=self.device, dtype=dtype)
            self.network = RESIDENTS.take(self.model, ".", load, dtype).eval()

    @torch.no_grad()
    def run(self, work: Work[VisionOptions]) -> None:
        video = probe(video_of(work))
        count = len(frame_times(video))
        wanted = chosen(count, work.options.sampled_frames)
        further: dict[str, Any] = {}
        if self.model.variant == "depth":
            found = self._structure(work, video, wanted)
        else:
            features = torch.cat([self._features(batch) for batch in self._batches(work, video, wanted)])
            found = self._figures(work, features, wanted)
            further["features"] = [round(value, DIGITS) for value in features.mean(0).tolist()]
        fields = {
            "width": video.width,
            "height": video.height,
            "num_frames": count,
            "fps": f"{video.fps.numerator}/{video.fps.denominator}",
            "scores": [self.model.name],
            "figures": {f"{self.model.name}.{name}": round(value, DIGITS) for name, value in found.items()},
            "details": {},
            **further,
        }
        write_index(work.output, "scores", fields)

    def _figures(self, work: Work[VisionOptions], features: torch.Tensor, wanted: Sequence[int]) -> dict[str, float]:
        """The figures of features [N, D] of the wanted frames, each of length 1."""
        found = {"consistency": consistency(features)} if len(features) > 1 else {}
        if self.tokenizer is None:
            return found
        prompted = [(place, prompt) for place, prompt in enumerate(prompts_of(work, wanted)) if prompt]
        texts = {prompt: self._text_features(prompt) for prompt in dict.fromkeys(prompt for _, prompt in prompted)}
        likeness = [float(features[place] @ texts[prompt][0]) for place, prompt in prompted]
        return found | ({"alignment": fmean(likeness)} if likeness else {})

    def _features(self, images: list[np.ndarray]) -> torch.Tensor:
        """The features of images, uint8 [H, W, 3]: float32 [N, D] of length 1, in main memory."""
        pixels = self._pixels(images)
        if self.model.variant == "dinov2":
            found = self.network(pixel_values=pixels).pooler_output
        else:
            found = self.network.get_image_features(pixel_values=pixels).pooler_output
        return unit(found)

    def _text_features(self, prompt: str) -> torch.Tensor:
        """The features of a text: float32 [1, D] of length 1, in main memory."""
        assert self.tokenizer is not None
        positions = self.network.config.text_config.max_position_embeddings
        padding = "max_length" if self.model.variant == "siglip" else False  # as SigLIP was trained
        tokens = self.tokenizer([prompt], padding=padding, truncation=True, max_length=positions, return_tensors="pt")
        return unit(self.network.get_text_features(**tokens.to(self.device)).pooler_output)

    def _structure(self, work: Work[VisionOptions], video: Source, wanted: Sequence[int]) -> dict[str, float]:
        """How much of the source's depth the film keeps: the correlation of both maps, mean over the frames."""
        path = source_of(work)
        assert path is not None  # see `check`
        source = probe(path)
        if len(frame_times(source)) != len(frame_times(video)):
            raise ItemError(
                f"{path} has not as many frames as {video.path}", "score a film that shows its source frame by frame"
            )
        pairs = zip(self._batches(work, video, wanted), self._batches(work, source, wanted))
        correlations = [correlation(self._depth(ours), self._depth(theirs)) for ours, theirs in pairs]
        return {"structure": float(torch.cat(correlations).mean())}

    def _depth(self, images: list[np.ndarray]) -> torch.Tensor:
        """Depth maps, float32 [N, pixels], in main memory."""
        return self.network(pixel_values=self._pixels(images)).predicted_depth.flatten(1).float().cpu()

    def _pixels(self, images: list[np.ndarray]) -> torch.Tensor:
        """Images, uint8 [H, W, 3], as the network takes them: [N, 3, h, w]."""
        return self.processor(images, return_tensors="pt")["pixel_values"].to(self.device, self.network.dtype)

    def _batches(self, work: Work[VisionOptions], video: Source, wanted: Sequence[int]) -> Iterator[list[np.ndarray]]:
        images = (frame.rgb for frame in frames(video, only=frozenset(wanted)))
        while batch := list(islice(images, work.options.frame_batch_size)):
            yield batch


def chosen(count: int, number: int) -> list[int]:
    """The frames that are looked at, of `count`: the midpoints of `number` equal parts, or all."""
    if not 0 < number < count:
        return list(range(count))
    return [int((part + 0.5) * count / number) for part in range(number)]


def prompts_of(work: Work[VisionOptions], wanted: Sequence[int]) -> list[str]:
    """The prompt of each wanted frame, "" for frames of which nothing says what they show."""
    if work.options.prompt:
        return [work.options.prompt] * len(wanted)
    film = work.input("film")
    if isinstance(film, Path):
        return []
    prompts = frame_prompts(film)
    return [prompts[place] for place in wanted]


def frame_prompts(film: Artifact) -> list[str]:
    """The prompt of each frame of a film or a clip, "" where its index has none."""
    if film.kind == "clip":
        return [film.fields["prompt"]] * film.fields["num_frames"]
    return [part.get("prompt", "") for part in film.fields["parts"] for _ in range(part["frames"])]


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def consistency(features: torch.Tensor) -> float:
    """VBench's consistency of features [N, D] of length 1: of each frame after the first, the mean of its likeness to the
    frame before and to the first frame, cosines that are at least 0; mean over these frames."""
    to_before = (features[1:] * features[:-1]).sum(1).clamp(min=0)
    to_first = (features[1:] @ features[0]).clamp(min=0)
    return float(((to_before + to_first) / 2).mean())


def correlation(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of each row of two matrices [N, M]; 0 for a row without variation."""
    ours, theirs = (maps - maps.mean(1, keepdim=True) for maps in (ours, theirs))
    return torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
