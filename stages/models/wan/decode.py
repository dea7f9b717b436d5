"""Decode for Wan2.2: latents become a clip, its lossless last frame, and its statistics."""

from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from stages.media.stats import ClipStatistics
from stages.media.write import VideoWriter, write_png
from stages.models.shared.loading import loading
from stages.models.wan.common import check_origin, check_repository, model_fields
from stages.models.wan.vae import decoded, denormalised, pixels
from stages.runtime.artifacts import member_path, write_index
from stages.runtime.worker import Setting, Work


class Decode:
    """Writes `clip`: the video, its last frame as PNG, and the video once more without loss where that is wanted."""

    def __init__(self, setting: Setting):
        self.model, self.device = setting.model, torch.device(setting.device)

    def phases(self) -> tuple[str, ...]:
        return ("",)

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE in float32: in half precision colours walk along a chain. Raises JobError."""
        check_repository(self.model)
        with loading(self.model):
            self.vae = AutoencoderKLWan.from_pretrained(
                self.model.folder(), subfolder="vae", dtype=torch.float32, use_safetensors=True
            ).to(self.device)
        if options["vae_tiling"]:
            self.vae.enable_tiling()

    def run(self, work: Work, phase: str) -> None:
        latents, options = work.inputs["latents"], work.options
        rate = Fraction(options["fps"]).limit_denominator(1001)
        z = denormalised(self.vae, latents.tensors()["latents"].to(self.device))
        size = latents.fields["width"], latents.fields["height"]
        codecs = {".mp4": "h264", **({".mkv": "lossless"} if options["lossless"] else {})}
        statistics = ClipStatistics()
        with ExitStack() as stack:
            videos = [
                stack.enter_context(
                    VideoWriter(member_path(work.output, suffix), *size, rate, codec=codec, crf=options["crf"])
                )
                for suffix, codec in codecs.items()
            ]
            for frame in decoded(self.vae, z):
                rgb = pixels(frame)
                statistics.add(rgb)
                for video in videos:
                    video.write(rgb)
        write_png(member_path(work.output, ".last.png"), rgb)
        passed_on = ("width", "height", "num_frames", "prompt", "raw", "seed")
        fields = {
            **{name: latents.fields[name] for name in passed_on},
            **model_fields(self.model, work),
            "fps": f"{rate.numerator}/{rate.denominator}",
            "statistics": statistics.summary(),
        }
        write_index(work.output, "clip", fields, [*codecs, ".last.png"])
