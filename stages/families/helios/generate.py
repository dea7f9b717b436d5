"""Generate for Helios: denoises chunk after chunk, each from the latents before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from diffusers import HeliosDMDScheduler, HeliosScheduler, HeliosTransformer3DModel

from stages.families.helios.history import Past, latest
from stages.families.helios.noise import SOURCE, draw_past, generator
from stages.families.helios.options import (
    DISTILLED,
    PYRAMIDS,
    GenerateOptions,
    check_generation,
    prompt_starts,
)
from stages.families.helios.pyramid import denoise_pyramid
from stages.families.helios.sampler import Prediction, denoise
from stages.families.shared.compiling import check_compiler
from stages.families.shared.film import FilmLatents, Progress, chain_keys, seal_blocks, unchanged_blocks
from stages.families.shared.item import PRECISION_OR_GUIDANCE, carry, check_finite, check_lineage, parts_of
from stages.families.shared.loading import DTYPES, load_network, loading
from stages.families.shared.model_index import read_config
from stages.families.shared.transformer import is_whole_on_device, prepare_transformer
from stages.families.shared.wan.lora import loras_of, merge
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.partial import digest_tensors
from stages.runtime.progress import track
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import Work, Worker


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, C, T, h, w] of whole chunks, without the source.

    Beside them it writes what a next chunk would read: the history [1, C, N, h, w], which is the last latents, those of the
    source or of the clip before among them, and the first_latent of the film.
    """

    def check(self, work: Work[GenerateOptions]) -> None:
        encoded = work.artifact("encoded")
        check_lineage(encoded, self.model)
        check_generation(self.model.variant, work.options.values())
        if work.options.compile != "none":
            check_compiler(self.device)
        fields, length = encoded.fields, encoded.shapes.get("video_moments", (0,) * 5)[2]
        if length % fields["block"] or bool(length) != bool(fields["source_frames"]):
            raise ItemError(
                f"the video_moments in {encoded.path} are {length} latents, and a chunk has {fields['block']}",
                "make it again with encode",
            )

    @cached_property
    def scheduler(self) -> HeliosScheduler | HeliosDMDScheduler:
        """The scheduler of the repository. Raises JobError."""
        kind = HeliosDMDScheduler if self.model.variant == DISTILLED else HeliosScheduler
        with loading(self.model):
            return kind.from_pretrained(self.model.folder(), subfolder="scheduler")

    def load(self, options: GenerateOptions) -> None:
        """Load the transformer and merge the LoRA files. Raises JobError, and ItemError for a LoRA that does not fit."""
        dtype, device = DTYPES[options.dtype], torch.device(self.device)
        target = device if is_whole_on_device(options) else torch.device("cpu")

        def load() -> torch.nn.Module:
            with loading(self.model):
                read = partial(load_network, HeliosTransformer3DModel, self.model.folder(), "transformer")
                transformer = read(target, dtype=dtype).eval()
            merge(transformer, loras_of(options.lora, options.lora_scale), device)
            return prepare_transformer(transformer, options, dtype, device)

        self.transformer = RESIDENTS.take(self.model, "transformer", load, *options.reloading())

    @torch.no_grad()
    def run(self, work: Work[GenerateOptions]) -> None:
        encoded, options = work.artifact("encoded"), work.options
        tensors, fields, dtype = encoded.tensors(), encoded.fields, DTYPES[options.dtype]
        block, count = fields["block"], fields["latent_frames"] // fields["block"]
        carried = carry(self.model, work, encoded, "block", seed=options.seed, **parts_of(fields, prompt_starts(fields)))
        past = self._past(encoded, options)
        shape = (*past.prefix.shape[:2], block, *past.prefix.shape[3:])
        which = [sum(switch <= number * block for switch in fields["switches"]) for number in range(count)]  # prompts
        keys = chunk_keys([work.key_without_inputs, shape, fields["source_frames"]], tensors, which)
        earlier, nothing = unchanged_blocks(work.earlier, keys, block), torch.empty(1, shape[1], 0, *shape[3:])
        film = FilmLatents(nothing, count * block, block, Progress(work, carried), every=1, finished=earlier)
        prompts = tensors["prompt_embeds"].to(self.device, dtype)
        negative = tensors["negative_prompt_embeds"].to(self.device, dtype) if options.guidance_scale > 1 else None
        for number in track(range(count), work.item.id, "chunk"):
            start = number * block
            chunk = film.block(start)
            if chunk is None:
                prompt = prompts[which[number]][None]
                near = past.to(self.device, dtype)
                model = Prediction(self.transformer, dtype, near, prompt, negative, options.history_sizes)
                begins = number == 0 and "history" not in tensors
                chunk = self._chunk(model, shape, number, options, begins).to("cpu", torch.float32)
                check_finite(chunk, f"chunk {number} of {work.item.id}", PRECISION_OR_GUIDANCE)
                film.add(chunk)
            past = past.after(chunk)
        seals = seal_blocks(keys, film.latents)
        made = {"latents": film.latents, "history": past.history, "first_latent": past.prefix}
        write_tensors(work.output, "latents", {**carried, "seals": seals}, made)
        film.progress.finish()

    def _past(self, encoded: Artifact, options: GenerateOptions) -> Past:
        """What lies before the first chunk: the clip before, the source with noise on it, or nothing."""
        tensors, fields, length = encoded.tensors(), encoded.fields, sum(options.history_sizes)
        if "history" in tensors:
            return Past(tensors["first_latent"], latest([tensors["history"]], length))
        vae = read_config(self.model.folder() / "vae")
        if not fields["source_frames"]:
            stride = vae.get("scale_factor_spatial", 8)
            channels = vae.get("z_dim", 16)
            empty = torch.zeros(1, channels, 1, fields["height"] // stride, fields["width"] // stride)
            return Past(empty, latest([empty], length))
        prefix, history = draw_past(
            tensors["image_moments"],
            tensors["video_moments"].split(fields["block"], dim=2),
            fields["source_frames"] == 1,
            vae,
            options.image_noise_sigma,
            options.video_noise_sigma,
            generator(options.seed, SOURCE),
        )
        return Past(prefix, latest([history], length))

    def _chunk(
        self, model: Prediction, shape: tuple[int, ...], number: int, options: GenerateOptions, begins: bool
    ) -> torch.Tensor:
        """Denoise a chunk of this shape on the device. `begins` says that it is the first one of a film."""
        draws = generator(options.seed, number + 1)
        noise = torch.randn(shape, generator=draws).to(self.device)
        scale, stages = options.guidance_scale, options.pyramid_num_inference_steps_list
        if self.model.variant not in PYRAMIDS:
            return denoise(model, self.scheduler, noise, options.num_inference_steps, scale)
        amplify = options.amplify_first_chunk and begins and self.model.variant == DISTILLED
        return denoise_pyramid(model, self.scheduler, noise, stages, scale, options.zero_init_steps, amplify, draws)


def chunk_keys(facts: Any, encoded: Mapping[str, torch.Tensor], which: Sequence[int]) -> list[str]:
    """A key per chunk, of all that it depends on: `facts` of the whole film, the source, and the prompts up to it.

    `which` are the numbers of the prompts, by chunk.
    """
    prompts = [digest_tensors({"prompt": prompt}) for prompt in encoded["prompt_embeds"]]
    others = {name: tensor for name, tensor in encoded.items() if name != "prompt_embeds"}
    return chain_keys(digest_tensors(others, facts), [prompts[number] for number in which])
