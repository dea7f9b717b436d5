"""Generate for FRESCO: translate the keyframes of a source to the style that the prompt describes."""

from collections.abc import Mapping
from functools import cached_property

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel

from stages.families.fresco.attention import Guidance, install
from stages.families.fresco.options import GenerateOptions
from stages.families.fresco.sampler import ANCHORS, Batch, Models, Settings, batch_motion, translate
from stages.families.fresco.smoothing import Background, background_mask
from stages.families.shared.item import carry, check_finite, check_frames, check_lineage
from stages.families.shared.loading import DTYPES, load_network, loading
from stages.families.shared.pixels import to_float
from stages.families.shared.sd_vae import load_vae
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.progress import StepBar
from stages.runtime.worker import Work, Worker

SMOOTHED, OF_STEPS = (16, 17), 20  # the background is smoothed at steps 16 and 17 of 20
FREEU = {"s1": 1.0, "s2": 1.0, "b1": 1.2, "b2": 1.5}


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, 4, K, h, w] of K keyframes."""

    def check(self, work: Work[GenerateOptions]) -> None:
        encoded = work.artifact("encoded")
        check_lineage(encoded, self.model)
        check_frames(encoded, encoded.fields["num_frames"])
        if encoded.fields["control"] != (control := work.options.controlnet_type):
            maps = encoded.fields["control"]
            raise ItemError(
                f"{encoded.path} has {maps} maps and controlnet_type is {control}",
                f"encode it again, or set controlnet_type to {maps}",
            )

    def load(self, options: GenerateOptions) -> None:
        """Load the U-Net and the ControlNet. Raises JobError."""
        folder, dtype = self.model.folder(), DTYPES[options.dtype]
        with loading(self.model):
            unet = load_network(UNet2DConditionModel, folder, "unet", self.device, dtype=dtype)
            name = f"controlnet_{options.controlnet_type}"
            control = load_network(ControlNetModel, folder, name, self.device, dtype=dtype)
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        for network in (unet, control):
            network.eval().requires_grad_(False)
        if options.use_freeu:
            unet.enable_freeu(**FREEU)
        guidance = Guidance(frames=0)
        install(unet, guidance)
        self.models = Models(unet, control, scheduler, guidance)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE, loaded at the first clip with masks. Raises JobError."""
        return load_vae(self.model, self.device)

    @torch.no_grad()
    def run(self, work: Work[GenerateOptions]) -> None:
        encoded, options = work.artifact("encoded"), work.options
        tensors, fields = encoded.tensors(), encoded.fields
        texts = ("negative_prompt_embeds", "prompt_embeds")
        text = torch.cat([tensors[name] for name in texts]).to(self.device, self.models.unet.dtype)
        settings = settings_of(options)
        anchors: list[torch.Tensor] = []
        keyframes: list[torch.Tensor] = []
        steps = len(fields["batches"]) * (settings.steps - max(settings.warmup, 0))
        with StepBar(steps, work.item.id) as bar:
            for batch in fields["batches"]:
                latents = translate(self.models, self._batch(batch, encoded, tensors), text, settings, anchors, bar.update)
                check_finite(latents, f"latents of the keyframes {batch} of {work.item.id}")
                keyframes.append(latents[ANCHORS:] if keyframes else latents)
        carried = carry(self.model, work, encoded, "frames", seed=options.seed)
        write_tensors(work.output, "latents", carried, {"latents": torch.cat(keyframes).transpose(0, 1)[None]})

    def _batch(self, batch: list[int], encoded: Artifact, tensors: Mapping[str, torch.Tensor]) -> Batch:
        control = tensors["control"][batch].to(self.device).float() / 255
        motion, background = batch_motion(batch, encoded.fields["pairs"], tensors, self.device), None
        if "masks" in tensors:
            foreground = tensors["masks"][batch].to(self.device).float() / 255
            background = Background(background_mask(foreground), motion, self.vae)
        return Batch(
            latents=tensors["image_latents"][0].transpose(0, 1)[batch].to(self.device),
            control=control[:, None].expand(-1, 3, -1, -1),
            images=to_float(tensors["pixels"][batch].to(self.device)),
            motion=motion,
            background=background,
        )


def settings_of(options: GenerateOptions) -> Settings:
    """The sampler's settings; the steps of background smoothing scale with the number of steps."""
    return Settings(
        steps=options.num_inference_steps,
        warmup=options.num_warmup_steps,
        optimised_steps=options.end_opt_step,
        guidance_scale=options.guidance_scale,
        cond_scale=options.controlnet_conditioning_scale,
        temporal_end=options.temporal_end,
        iterations=options.feature_iterations,
        rate=options.feature_rate,
        gram_weight=options.gram_weight,
        matmul_precision=options.matmul_precision,
        smoothed_steps=[round(step * options.num_inference_steps / OF_STEPS) for step in SMOOTHED],
        seed=options.seed,
    )
