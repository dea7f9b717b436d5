"""Generate for `text2video`: denoises a clip, in -1..1."""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from diffusers import DDPMScheduler

from stages.families.shared.item import carry, check_lineage
from stages.families.shared.loading import DTYPES, load_network, loading
from stages.families.text2video.common import unet_config
from stages.families.text2video.options import DDIM_STEPS, GenerateOptions
from stages.families.text2video.sampler import denoise
from stages.families.text2video.unet import UNet3D
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.progress import StepBar
from stages.runtime.worker import Work, Worker


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, 3, T, H, W]. The model works on pixels, so they are the clip itself."""

    def check(self, work: Work[GenerateOptions]) -> None:
        check_lineage(work.artifact("encoded"), self.model)
        given, width = work.artifact("encoded").shapes.get("condition"), unet_config(self.model).get("condition_dim")
        if (given and given[1]) != width:
            raise ItemError(
                f"the condition in {work.artifact('encoded').path} has {given[1] if given else 0} numbers",
                f"model {self.model.name} takes {width or 0}: make it again with encode",
            )
        steps, limit = (
            work.options.num_inference_steps,
            DDPMScheduler.from_config(self.schedule).config.num_train_timesteps,
        )
        if steps > limit:
            raise ItemError(f"steps is {steps} and model {self.model.name} was trained on {limit}", f"take {limit} or fewer")
        if work.options.sampler == "ddim" and steps > DDIM_STEPS:
            reason = f"sampler is ddim and steps is {steps}: the clip may become dark"
            log("warning", item=work.item.id, reason=reason, remedy=f"use sampler ddpm, or 20 to {DDIM_STEPS} steps")

    @cached_property
    def schedule(self) -> Mapping[str, Any]:
        """The scheduler's config. Raises JobError."""
        with loading(self.model):
            schedule = DDPMScheduler.load_config(self.model.folder(), subfolder="scheduler")
            DDPMScheduler.from_config(schedule)  # raises for a config that makes no scheduler
            return schedule

    def load(self, options: GenerateOptions) -> None:
        """Load the U-Net. Raises JobError."""
        with loading(self.model):
            folder, dtype = self.model.folder(), DTYPES[options.dtype]
            self.unet = load_network(UNet3D, folder, "unet", self.device, dtype).eval()

    def run(self, work: Work[GenerateOptions]) -> None:
        fields, options = work.artifact("encoded").fields, work.options
        tensors = work.artifact("encoded").tensors()
        dtype = DTYPES[options.dtype]
        text, negative = (tensors[name].to(self.device, dtype) for name in ("prompt_embeds", "negative_prompt_embeds"))
        unet = self.unet
        if "condition" in tensors:
            unet = partial(unet, condition=tensors["condition"].to(self.device, dtype))
        generator = torch.Generator("cpu").manual_seed(options.seed)
        shape = (1, self.unet.config.in_channels, fields["num_frames"], fields["height"], fields["width"])
        noise = torch.randn(shape, generator=generator).to(self.device)
        with StepBar(options.num_inference_steps, work.item.id) as bar:
            clip = denoise(
                unet,
                noise,
                text,
                negative,
                self.schedule,
                sampler=options.sampler,
                steps=options.num_inference_steps,
                guidance=options.guidance_scale,
                generator=generator,
                after_step=bar.update,
            )
        carried = carry(self.model, work, work.artifact("encoded"), seed=options.seed)
        write_tensors(work.output, "latents", carried, {"latents": clip})
