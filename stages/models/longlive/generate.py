"""Generate for LongLive: block by block from noise, over a cache that the source and the blocks before have filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.options import LONGEST, check_longest, check_window
from stages.models.longlive.progress import Progress
from stages.models.longlive.sampler import Schedule, denoise, remember, switch
from stages.models.shared.loading import DTYPES, load_network, loading, read_config
from stages.models.shared.origin import check_frames, check_origin, model_fields
from stages.models.shared.wan.lora import merge
from stages.models.shared.wan.transformer import place
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

SMALL_GPU = 40 * 2**30  # bytes: of less than that the transformer stays in main memory


class Generate(Worker):
    """Writes `latents` float32 [1, C, T, h, w], those of the source first."""

    def check(self, work: Work) -> None:
        encoded = work.inputs["encoded"]
        check_origin(encoded, self.model)
        check_frames(encoded, *range(0, encoded.fields["latent_frames"], encoded.fields["block"]))
        check_window(work.options, encoded.fields["block"])
        rows = read_config(self.model.folder() / "transformer").get("rope_max_seq_len", LONGEST)
        check_longest(encoded.fields["latent_frames"], work.options, rows)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the transformer, with a LoRA merged into it. Raises JobError, ItemError for a LoRA that does not fit."""
        dtype, device = DTYPES[options["dtype"]], torch.device(self.device)
        with loading(self.model):
            transformer = load_network(WanTransformer3DModel, self.model.folder(), "transformer", dtype=dtype).eval()
        if options["lora"]:
            merge(transformer, Path(options["lora"]), alpha=options["lora_alpha"])
        self.causal = CausalWan(transformer, options["relative_positions"], dtype)
        offloaded = {"offload": "block_level", "offload_blocks": 1, "offload_stream": False}
        place(transformer, offloaded if wants_little(options, device) else {"offload": "none"}, device)

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        encoded, options = work.inputs["encoded"], work.options
        tensors, fields = encoded.tensors(), encoded.fields
        given = tensors.get("image_latents", self._no_frames(fields))
        passed_on = ("width", "height", "num_frames", "prompt", "raw", "source_frames")
        facts = {name: fields[name] for name in passed_on} | {**model_fields(self.model, work), "seed": options["seed"]}
        progress = Progress(work, facts)
        film = Film(given, fields["latent_frames"], fields["block"], progress, options["checkpoint_every"])
        text = tensors["prompt_embeds"].to(self.device, DTYPES[options["dtype"]])
        schedule = Schedule.of(
            options["denoising_step_list"],
            options["timestep_shift"],
            options["warp_denoising_step"],
            options["context_noise"],
        )
        cache = Cache(options["local_attn_size"], options["sink_size"])
        blocks = noises(film.shape, len(schedule.sigmas), options["seed"])
        prompt, starts = 0, range(0, fields["latent_frames"], fields["block"])
        for start in tqdm(starts, desc=work.item.id, unit="block", disable=None, leave=False):
            following = sum(frame <= start for frame in fields["switches"])
            if following != prompt:
                self._switch(cache, film, text[following : following + 1], schedule, start, options)
                prompt = following
            telling = text[prompt : prompt + 1]
            if (known := film.block(start)) is not None:
                remember(self.causal, cache, known.to(self.device), telling, schedule, start)
                if start >= film.given:
                    next(blocks)
                continue
            noise, *fresh = next(blocks).to(self.device)
            made = denoise(self.causal, cache, noise, fresh, telling, schedule, start)
            if not torch.isfinite(made).all():
                raise ItemError(
                    f"block {start // fields['block']} of {work.item.id} became NaN or infinite", "try --dtype float32"
                )
            film.add(made.cpu())
        write_tensors(work.output, "latents", facts, {"latents": film.latents})
        progress.end()

    def _no_frames(self, fields: Mapping[str, Any]) -> torch.Tensor:
        """The latents of a film without a source, [1, C, 0, h, w]."""
        stride = read_config(self.model.folder() / "vae").get("scale_factor_spatial", 8)
        channels = self.causal.transformer.config.in_channels
        return torch.empty(1, channels, 0, fields["height"] // stride, fields["width"] // stride)

    def _switch(self, cache: Cache, film: Film, text: torch.Tensor, schedule: Schedule, start: int, options) -> None:
        if not options["recache_on_switch"] or start == 0:
            cache.forget_prompt()
            return
        first = max(0, start - cache.window)
        latest = film.latents[:, :, first:start].to(self.device)
        switch(self.causal, cache, latest, text, schedule, first, options["global_sink"])


class Film:
    """The clean latents so far: the source's, and blocks that were made, of which some may have been found again."""

    def __init__(self, given: torch.Tensor, frames: int, block: int, progress: Progress, every: int):
        self.progress, self.every, self.block_size = progress, every, block
        batch, channels, self.given, height, width = given.shape
        self.shape = (batch, channels, block, height, width)
        self.latents = torch.empty(batch, channels, frames, height, width)
        self.done = 0  # frames
        found = progress.found()
        self._append(given if found is None else found)

    def block(self, start: int) -> torch.Tensor | None:
        """The block that begins at a frame; None where it is still to be made."""
        return self.latents[:, :, start : start + self.block_size] if start < self.done else None

    def add(self, block: torch.Tensor) -> None:
        """Append a block, and keep those that were made where it is time to."""
        self._append(block)
        made = (self.done - self.given) // self.block_size
        if self.every and made % self.every == 0 and self.done < self.latents.shape[2]:
            self.progress.keep(self.latents[:, :, : self.done])

    def _append(self, frames: torch.Tensor) -> None:
        end = self.done + frames.shape[2]
        self.latents[:, :, self.done : end] = frames
        self.done = end


def noises(shape: tuple[int, ...], steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Block after block what it starts from and what is added after its steps, [steps, *shape]: from one generator on the
    CPU, so a longer film begins as a shorter one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randn((steps, *shape), generator=generator, dtype=torch.float32)


def wants_little(options: Mapping[str, Any], device: torch.device) -> bool:
    """Whether to keep the weights in main memory: as asked, else on a small GPU."""
    if options["low_memory"] is not None or device.type != "cuda":
        return bool(options["low_memory"])
    return torch.cuda.get_device_properties(device).total_memory < SMALL_GPU
