"""Generate for FRESCO: keyframes of a source become keyframes in the look that the prompt tells."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from tqdm import tqdm

from stages.models.fresco.attention import Guidance, install
from stages.models.fresco.sampler import ANCHORS, Batch, Models, Settings, motion_of, translate
from stages.models.fresco.smoothing import Background, behind
from stages.models.shared.loading import DTYPES, load_network, loading
from stages.models.shared.origin import check_frames, check_origin, model_fields
from stages.models.shared.picture_vae import load_vae
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

SMOOTHED, OF_STEPS = (16, 17), 20  # the steps at which a background is smoothed
FREEU = {"s1": 1.0, "s2": 1.0, "b1": 1.2, "b2": 1.5}


class Generate(Worker):
    """Writes `latents` float32 [1, 4, K, h, w], one of each keyframe."""

    def check(self, work: Work) -> None:
        encoded = work.inputs["encoded"]
        check_origin(encoded, self.model)
        check_frames(encoded, encoded.fields["num_frames"])
        if encoded.fields["control"] != (control := work.options["controlnet_type"]):
            made = encoded.fields["control"]
            raise ItemError(
                f"{encoded.path} has {made} maps and controlnet_type is {control}", f"make it again, or take {made}"
            )

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load U-Net and ControlNet. Raises JobError."""
        folder, dtype = self.model.folder(), DTYPES[options["dtype"]]
        with loading(self.model):
            unet = load_network(UNet2DConditionModel, folder, "unet", dtype=dtype)
            name = f"controlnet_{options['controlnet_type']}"
            control = load_network(ControlNetModel, folder, name, dtype=dtype)
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        for network in (unet, control):
            network.to(self.device).eval().requires_grad_(False)
        if options["use_freeu"]:
            unet.enable_freeu(**FREEU)
        guidance = Guidance(frames=0)
        install(unet, guidance)
        self.models = Models(unet, control, scheduler, guidance)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """For clips with masks alone."""
        return load_vae(self.model, self.device)

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        encoded, options = work.inputs["encoded"], work.options
        tensors, fields = encoded.tensors(), encoded.fields
        texts = ("negative_prompt_embeds", "prompt_embeds")
        text = torch.cat([tensors[name] for name in texts]).to(self.device, self.models.unet.dtype)
        settings = settings_of(options)
        known, made = [], []
        steps = len(fields["batches"]) * (settings.steps - max(settings.warmup, 0))
        with tqdm(total=steps, desc=work.item.id, unit="step", disable=None, leave=False) as bar:
            for batch in fields["batches"]:
                latents = translate(self.models, self._batch(batch, encoded, tensors), text, settings, known, bar.update)
                if not torch.isfinite(latents).all():
                    raise ItemError(f"keyframes {batch} of {work.item.id} became NaN or infinite", "try --dtype float32")
                made.append(latents[ANCHORS:] if made else latents)
        passed_on = ("width", "height", "num_frames", "frames", "prompt", "raw")
        facts = {name: fields[name] for name in passed_on} | {**model_fields(self.model, work), "seed": options["seed"]}
        write_tensors(work.output, "latents", facts, {"latents": torch.cat(made).transpose(0, 1)[None]})

    def _batch(self, batch: list[int], encoded: Artifact, tensors: Mapping[str, torch.Tensor]) -> Batch:
        control = tensors["control"][batch].to(self.device).float() / 255
        motion, background = motion_of(batch, encoded.fields["pairs"], tensors, self.device), None
        if "masks" in tensors:
            background = Background(behind(tensors["masks"][batch].to(self.device).float() / 255), motion, self.vae)
        return Batch(
            latents=tensors["image_latents"][0].transpose(0, 1)[batch].to(self.device),
            control=control[:, None].expand(-1, 3, -1, -1),
            images=tensors["pixels"][batch].to(self.device).float() / 127.5 - 1,
            motion=motion,
            background=background,
        )


def settings_of(options: Mapping[str, Any]) -> Settings:
    return Settings(
        steps=options["num_inference_steps"],
        warmup=options["num_warmup_steps"],
        optimised_steps=options["end_opt_step"],
        guidance_scale=options["guidance_scale"],
        cond_scale=options["cond_scale"],
        temporal_end=options["temporal_end"],
        iterations=options["feature_iterations"],
        rate=options["feature_rate"],
        gram_weight=options["gram_weight"],
        smoothed_steps=[round(step * options["num_inference_steps"] / OF_STEPS) for step in SMOOTHED],
        seed=options["seed"],
    )
