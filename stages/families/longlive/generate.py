"""Generate for LongLive: denoises block after block over a KV cache of the source and the earlier blocks."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.options import (
    FAMILY,
    LONGEST,
    GenerateOptions,
    check_compile,
    check_longest,
    check_window,
    prompt_starts,
)
from stages.families.longlive.sampler import Schedule, denoise, recache, update_cache
from stages.families.shared.ahead import ahead
from stages.families.shared.compiling import check_compiler, compile_blocks
from stages.families.shared.film import FilmLatents, Progress
from stages.families.shared.item import carry, check_finite, check_frames, check_lineage, parts_of
from stages.families.shared.loading import DTYPES
from stages.families.shared.model_index import read_config
from stages.families.shared.transformer import place
from stages.families.shared.wan.lora import loras_of
from stages.families.shared.wan.options import check_loras
from stages.families.shared.wan.transformer import empty_transformer, load_transformer
from stages.runtime import memory
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import JobError
from stages.runtime.model import Model
from stages.runtime.progress import track
from stages.runtime.weights import bytes_in_memory
from stages.runtime.worker import Work, Worker

# Bytes beside weights and cache: those of a pass over a whole window, as with recache_on_switch, and some room.
ACTIVATIONS = 2 * 2**30


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, C, T, h, w]; those of the source come first."""

    def __init__(self, model: Model | None, device: str):
        super().__init__(model, device)
        self.largest = 0  # pixels of a frame of the items

    def check(self, work: Work[GenerateOptions]) -> None:
        encoded = work.artifact("encoded")
        check_lineage(encoded, self.model)
        check_frames(encoded, *range(0, encoded.fields["latent_frames"], encoded.fields["block"]))
        check_window(work.options.values(), encoded.fields["block"])
        check_loras(work.options.values())
        check_compile(work.options.values())
        if work.options.compile != "none":
            check_compiler(self.device)
        rows = read_config(self.model.folder() / "transformer").get("rope_max_seq_len", LONGEST)
        check_longest(encoded.fields["latent_frames"], work.options.values(), rows)

    def prepare(self, works: Sequence[Work[GenerateOptions]]) -> None:
        sizes = (work.artifact("encoded").fields for work in works)
        self.largest = max((fields["width"] * fields["height"] for fields in sizes), default=0)

    def load(self, options: GenerateOptions) -> None:
        """Load the transformer and merge the LoRA into it. Raises JobError, and ItemError for a LoRA that does not fit."""
        dtype, device = DTYPES[options.dtype], torch.device(self.device)
        offload = self._offloads(options)
        if offload and options.compile != "none":
            reason = f"compile is {options.compile} and the GPU has no room for {self.model.name} as a whole"
            raise JobError(reason, "set compile to none, or take a larger GPU")
        loras = loras_of(options.lora, options.lora_scale, options.lora_alpha)
        transformer = load_transformer(self.model, "transformer", dtype, loras, device=device, whole=not offload)
        self.causal = CausalWan(transformer, options.relative_positions, dtype)
        place(transformer, device, "block_level" if offload else "none")
        if options.compile == "blocks":
            compile_blocks(transformer)

    def _offloads(self, options: GenerateOptions) -> bool:
        """Whether the transformer stays in main memory: as low_memory says, else if the GPU has no room for all."""
        if options.low_memory is not None or not self.device.startswith("cuda"):
            return bool(options.low_memory)
        weights = bytes_in_memory(self.model, FAMILY.stages["generate"], options.values())
        folder = self.model.folder()
        config = empty_transformer(read_config(folder / "transformer"), folder / "transformer").config
        stride = read_config(folder / "vae").get("scale_factor_spatial", 8)
        tokens = self.largest // (stride**2 * config.patch_size[1] * config.patch_size[2])
        cache = cache_size(options.local_attn_size * tokens, config, DTYPES[options.dtype])
        return weights + cache + ACTIVATIONS > memory.gpu_memory(self.device)

    @torch.no_grad()
    def run(self, work: Work[GenerateOptions]) -> None:
        encoded, options = work.artifact("encoded"), work.options
        tensors, fields = encoded.tensors(), encoded.fields
        source = tensors.get("image_latents", self._empty_source(fields))
        carried = carry(
            self.model, work, encoded, "source_frames", seed=options.seed, **parts_of(fields, prompt_starts(fields))
        )
        progress = Progress(work, carried)
        film = FilmLatents(source, fields["latent_frames"], fields["block"], progress, options.checkpoint_every)
        text = tensors["prompt_embeds"].to(self.device, DTYPES[options.dtype])
        schedule = Schedule.of(
            options.denoising_step_list,
            options.shift,
            options.warp_denoising_step,
            options.context_noise,
        )
        cache = Cache(options.local_attn_size, options.sink_size)
        prompt_index, starts = 0, range(0, fields["latent_frames"], fields["block"])
        with ahead(block_noise(film.shape, len(schedule.sigmas), options.seed), 1) as noise_of_blocks:
            for start in track(starts, work.item.id, "block"):
                previous, prompt_index = prompt_index, sum(frame <= start for frame in fields["switches"])
                prompt = text[prompt_index : prompt_index + 1]
                if prompt_index != previous:
                    self._switch_prompt(cache, film, prompt, schedule, start, options)
                finished = film.block(start)
                if finished is None:
                    noise, *step_noise = next(noise_of_blocks).to(self.device)
                    block = denoise(self.causal, cache, noise, step_noise, prompt, schedule, start)
                else:
                    block = finished.to(self.device)
                    if start >= film.source_frames:
                        next(noise_of_blocks)
                if start != starts[-1]:  # nothing reads the cache after the last block
                    update_cache(self.causal, cache, block, prompt, schedule, start)
                if finished is None:
                    check_finite(block, f"block {start // fields['block']} of {work.item.id}")
                    film.add(block.cpu())
        write_tensors(work.output, "latents", carried, {"latents": film.latents})
        progress.finish()

    def _empty_source(self, fields: Mapping[str, Any]) -> torch.Tensor:
        """The source latents of a film without a source, [1, C, 0, h, w]."""
        stride = read_config(self.model.folder() / "vae").get("scale_factor_spatial", 8)
        channels = self.causal.transformer.config.in_channels
        return torch.empty(1, channels, 0, fields["height"] // stride, fields["width"] // stride)

    def _switch_prompt(
        self, cache: Cache, film: FilmLatents, prompt: torch.Tensor, schedule: Schedule, start: int, options: GenerateOptions
    ) -> None:
        """Prepare the cache for another prompt from frame `start` on."""
        if not options.recache_on_switch or start == 0:
            cache.clear_cross_attention()
            return
        first = max(0, start - cache.window)
        latest = film.latents[:, :, first:start].to(self.device)
        recache(self.causal, cache, latest, prompt, schedule, first, options.global_sink)


def block_noise(shape: tuple[int, ...], steps: int, seed: int) -> Generator[torch.Tensor, None, None]:
    """Yield the noise of block after block, [steps, *shape]: the initial noise, then the noise added between steps.

    All noise comes from one generator on the CPU, so a longer film begins with the same noise as a shorter one.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randn((steps, *shape), generator=generator, dtype=torch.float32)


def cache_size(tokens: int, config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `tokens` in all layers of a transformer with this config."""
    return 2 * config.num_layers * tokens * config.num_attention_heads * config.attention_head_dim * dtype.itemsize
