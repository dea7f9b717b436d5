"""Generate for `text2video`: noise and text states become a clip, still as numbers in -1..1."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler
from tqdm import tqdm

from stages.models.shared.loading import DTYPES, load_network, loading
from stages.models.shared.origin import check_origin, model_fields
from stages.models.text2video.sampler import denoise
from stages.models.text2video.unet import UNet3D
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Generate(Worker):
    """Writes `latents` float32 [1, 3, T, H, W]: the model works on pixels, so they are the clip itself."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["encoded"], self.model)
        steps, trained = work.options["steps"], DDPMScheduler.from_config(self.schedule).config.num_train_timesteps
        if steps > trained:
            raise ItemError(
                f"steps is {steps} and model {self.model.name} was trained on {trained}", "ask for at most as many"
            )

    @cached_property
    def schedule(self) -> Mapping[str, Any]:
        """The scheduler's config. Raises JobError."""
        with loading(self.model):
            schedule = DDPMScheduler.load_config(self.model.folder(), subfolder="scheduler")
            DDPMScheduler.from_config(schedule)  # one that makes none is told here
            return schedule

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the U-Net. Raises JobError."""
        with loading(self.model):
            self.unet = load_network(UNet3D, self.model.folder(), "unet", dtype=DTYPES[options["dtype"]])
        self.unet.to(self.device).eval()

    def run(self, work: Work, phase: str) -> None:
        fields, options = work.inputs["encoded"].fields, work.options
        tensors = work.inputs["encoded"].tensors()
        dtype = DTYPES[options["dtype"]]
        text, negative = (tensors[name].to(self.device, dtype) for name in ("prompt_embeds", "negative_prompt_embeds"))
        generator = torch.Generator("cpu").manual_seed(options["seed"])
        shape = (1, self.unet.config.in_channels, fields["num_frames"], fields["height"], fields["width"])
        noise = torch.randn(shape, generator=generator).to(self.device)
        with tqdm(total=options["steps"], desc=work.item.id, unit="step", disable=None, leave=False) as bar:
            clip = denoise(
                self.unet,
                noise,
                text,
                negative,
                self.schedule,
                sampler=options["sampler"],
                steps=options["steps"],
                guidance=options["guidance_scale"],
                generator=generator,
                after_step=bar.update,
            )
        passed_on = ("width", "height", "num_frames", "prompt", "raw")
        facts = {**{name: fields[name] for name in passed_on}, **model_fields(self.model, work), "seed": options["seed"]}
        write_tensors(work.output, "latents", facts, {"latents": clip})
