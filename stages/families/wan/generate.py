"""Generate for Wan2.2: noise and a condition become the latents of a clip.

The 14b and the 14b-t2v have two experts: one for the steps at high noise, one for the rest. Each expert is a phase of the
shard. So only one expert is in memory at a time, and each is loaded once. Between the phases the state of an item is in
`work.partial`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

from stages.families.shared.compiling import check_compiler
from stages.families.shared.guidance import Guidance
from stages.families.shared.item import carry, check_frames, check_lineage
from stages.families.shared.loading import DTYPES, loading, read_ahead
from stages.families.shared.model_index import read_config
from stages.families.shared.solvers import Scheduler, make_scheduler
from stages.families.shared.step_cache import step_cache
from stages.families.shared.transformer import is_whole_on_device, prepare_transformer
from stages.families.shared.wan.lora import loras_of
from stages.families.shared.wan.transformer import load_transformer
from stages.families.wan import checkpoint
from stages.families.wan.options import TWO_EXPERTS, GenerateOptions, check_generation, guidance_scales
from stages.families.wan.sampler import (
    MAKE_INPUT,
    Condition,
    State,
    apply_known,
    denoise,
    start,
    switch_step,
)
from stages.families.wan.timesteps import embed_each_timestep_once
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError, JobError, shown
from stages.runtime.model import Model
from stages.runtime.partial import StateMissing
from stages.runtime.progress import StepBar
from stages.runtime.ranks import Rank, Team
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import Work, Worker

HIGH, LOW = "high", "low"


def check_parts(gpus: int, heads: int, mask: Sequence[int]) -> None:
    """Raise ItemError if GPUs cannot divide the heads of a model, or the tokens of a clip, evenly (parallel ulysses)."""
    *_, frames, height, width = mask
    tokens = frames * (height // 2) * (width // 2)
    common = math.gcd(heads, tokens)
    if common % gpus:
        fitting = [str(number) for number in range(2, 65) if common % number == 0]
        raise ItemError(
            f"parallel is ulysses and gpus is {gpus}, which does not divide {heads} attention heads and {tokens} tokens",
            f"set gpus to {' or '.join(fitting)}" if fitting else "set parallel to layers",
        )


class Together(torch.nn.Module):
    """A transformer whose passes ranks make together."""

    def __init__(self, team: Team, device: str):
        super().__init__()
        self.team, self.device = team, device

    def forward(
        self, hidden: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (self.team.call("predict", hidden.cpu(), timestep.cpu(), prompt.cpu()).to(self.device),)


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, C, T, h, w]."""

    def __init__(self, model: Model | None, device: str):
        super().__init__(model, device)
        self.make_input = MAKE_INPUT[self.model.variant]
        self.is_guided = True  # whether an item is, in the phase

    def phases(self) -> tuple[str, ...]:
        return (HIGH, LOW) if self.model.variant in TWO_EXPERTS else ("",)

    def check(self, work: Work[GenerateOptions]) -> None:
        encoded = work.artifact("encoded")
        check_lineage(encoded, self.model)
        _, channels, frames, *_ = encoded.shapes.get("mask", (0,) * 5)
        in_channels = self.model.variant == "14b"  # whether the condition has the length of the clip
        if channels != (4 if in_channels else 1):
            raise ItemError(f"the mask in {encoded.path} has {channels} channels", "make it again with encode")
        check_frames(encoded, *((frames,) if in_channels else range(1, frames + 1)))
        if encoded.fields.get("padding") == "zeros" and not (work.options.lora and work.options.lora_2):
            raise ItemError(
                f"{encoded.path} is made for the LoRAs of SVI 2 Pro", "give them by --lora and --lora-2, one for each expert"
            )
        check_generation(self.model.variant, work.options.values())
        if work.options.compile != "none":
            check_compiler(self.device)
        config = read_config(self.model.folder() / "transformer")
        heads = config.get("num_attention_heads")
        if work.options.parallel == "ulysses" and isinstance(heads, int):
            check_parts(work.options.gpus, heads, encoded.shapes["mask"])
        blocks = config.get("num_layers")
        if isinstance(blocks, int) and any(number >= blocks for number in work.options.skip_layers):
            reason = f"skip_layers is {shown(work.options.skip_layers)} and model {self.model.name} has {blocks} blocks"
            raise ItemError(reason, f"choose from 0 to {blocks - 1}")

    @cached_property
    def schedule(self) -> Mapping[str, Any]:
        """The scheduler's config. Raises JobError."""
        with loading(self.model):
            schedule = UniPCMultistepScheduler.load_config(self.model.folder(), subfolder="scheduler")
            UniPCMultistepScheduler.from_config(schedule)  # raises for a config that makes no scheduler
            return schedule

    def prepare(self, works: Sequence[Work[GenerateOptions]]) -> None:
        self.is_guided = any(self._scale(work.options) > 1 for work in works)

    def uses_model(self, work: Work[GenerateOptions]) -> bool:
        """Whether a step is left for the expert: a schedule may have none, or an earlier process did them."""
        first, last = self._steps(self._scheduler(work.options), work.options)
        return max(first, checkpoint.finished_steps(work.partial)) < last

    def load(self, options: GenerateOptions) -> None:
        """Load the expert of the phase. Raises JobError, and ItemError for a LoRA that does not fit."""
        name, suffix = ("transformer_2", "_2") if self.phase == LOW else ("transformer", "")
        device, dtype = torch.device(self.device), DTYPES[options.dtype]
        loras = loras_of(getattr(options, f"lora{suffix}"), getattr(options, f"lora_scale{suffix}"))
        self.rank, in_rank = None, None
        if options.gpus > 1 and options.parallel == "ulysses":
            self.transformer = self._load_together(options)
            return
        if options.gpus > 1 and options.parallel == "cfg":
            options = replace(options, gpus=1)  # of each process
            if self.is_guided:
                served = "stages.families.wan.rank:Passes"
                self.rank = RESIDENTS.take(self.model, "rank", lambda: Rank(1, self.device, served, self.model))
                in_rank = self.rank.begin("load", self.phase, options)
        whole = is_whole_on_device(options)

        def load() -> torch.nn.Module:
            expert = load_transformer(self.model, name, dtype, loras, device=device, whole=whole)
            if self.model.variant == "5b":
                embed_each_timestep_once(expert)
            return prepare_transformer(expert, options, dtype, device, leaves_out_blocks=options.step_cache != "none")

        self.transformer = RESIDENTS.take(self.model, name, load, *options.reloading())
        if self.phase == HIGH:
            read_ahead(WanTransformer3DModel, self.model.folder(), "transformer_2", dtype)
        if in_rank:
            in_rank()

    def _load_together(self, options: GenerateOptions) -> torch.nn.Module:
        """The expert of the phase in ranks, which make each pass together. Raises JobError, ItemError."""
        if options.offload != "none":  # because the weights did not fit
            reason = f"{self.model.name} does not fit on each of {options.gpus} GPUs, as parallel ulysses needs it"
            raise JobError(reason, "set parallel to layers, or take larger GPUs")
        if self.device != "cpu":
            torch.cuda.empty_cache()  # for the rank on the same GPU
        team = Team(options.gpus, self.device, "stages.families.wan.rank:SharedPasses", self.model)
        team.call("load", self.phase, replace(options, gpus=1))
        return Together(team, self.device)

    def _begin_pass(self, hidden: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin a pass in the rank, see `elsewhere` of `denoise`."""
        assert self.rank is not None
        prediction = self.rank.begin("predict", hidden.cpu(), timestep.cpu(), prompt.cpu())
        return lambda: prediction().to(self.device)

    def run(self, work: Work[GenerateOptions]) -> None:
        options, encoded = work.options, work.artifact("encoded")
        scheduler = self._scheduler(options)
        first, last = self._steps(scheduler, options)
        condition = self._condition(encoded, options)
        state = checkpoint.load(work.partial, torch.device(self.device))
        if state is None and self.phase == LOW and first > 0:
            raise StateMissing(work.partial, "the state that the high-noise expert left")
        state = state or self._start(condition, options)
        if state.step < last:
            state = self._denoise(work, state, scheduler, first, last, condition)
        if self.phase == HIGH:
            checkpoint.save(work.partial, state)
        else:
            self._write(work, state, condition)

    def _scheduler(self, options: GenerateOptions) -> Scheduler:
        return make_scheduler(
            self.schedule,
            options.num_inference_steps,
            options.shift,
            torch.device(self.device),
            options.sigma_grid,
            options.sampler,
            options.sigmas,
            options.timesteps,
        )

    def _scale(self, options: GenerateOptions) -> float:
        """The guidance scale of the phase."""
        high, low = guidance_scales(options.values())
        return low if self.phase == LOW else high

    def _steps(self, scheduler: Scheduler, options: GenerateOptions) -> tuple[int, int]:
        """The first step of the phase, and the step after its last. The 5b, which has one expert, does all steps."""
        if not self.phase:
            return 0, options.num_inference_steps
        assert options.boundary_ratio is not None  # the default of the variants with two experts
        switch = switch_step(scheduler, options.boundary_ratio)
        return (0, switch) if self.phase == HIGH else (switch, options.num_inference_steps)

    def _condition(self, encoded: Artifact, options: GenerateOptions) -> Condition:
        """The encoded condition, on the device. Raises ItemError if a tensor is missing."""
        tensors = encoded.tensors()
        needed = {"image_latents", "mask"}
        needed |= {"negative_prompt_embeds"} if max(guidance_scales(options.values())) > 1 else set()
        if missing := sorted(needed - tensors.keys()):
            raise ItemError(f"{encoded.path} lacks the tensor {missing[0]}", "make it again with encode")
        dtype = DTYPES[options.dtype]
        negative = tensors.get("negative_prompt_embeds")
        image, mask = tensors["image_latents"], tensors["mask"]
        if 1 < image.shape[2] < mask.shape[2]:  # several known latents, and behind them what is generated
            image = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, mask.shape[2] - image.shape[2]))
        return Condition(
            image=image.to(self.device),
            mask=mask.to(self.device, torch.float32),
            prompt=tensors["prompt_embeds"].to(self.device, dtype),
            negative=None if negative is None else negative.to(self.device, dtype),
        )

    def _start(self, condition: Condition, options: GenerateOptions) -> State:
        """The state before the first step: noise."""
        shape = (1, condition.image.shape[1], *condition.mask.shape[2:])
        return start(shape, options.seed, torch.device(self.device), options.sampler)

    def _denoise(
        self, work: Work[GenerateOptions], state: State, scheduler: Scheduler, first: int, last: int, condition: Condition
    ) -> State:
        """Run the steps of the current phase, with a progress bar and checkpoints."""
        every = work.options.checkpoint_every
        label = f"{work.item.id} {self.phase}".strip()
        low = self.phase == LOW
        ratios = work.options.mag_ratios_2 if low else work.options.mag_ratios
        caching = step_cache(self.transformer, work.options, last - state.step, ratios)
        with caching, StepBar(last - first, label, done=state.step - first) as bar:

            def after_step(state: State) -> None:
                bar.update()
                if every and state.step % every == 0:
                    checkpoint.save(work.partial, state)

            return denoise(
                self.transformer,
                state,
                scheduler,
                last,
                condition,
                self.make_input,
                Guidance(self._scale(work.options), work.options),
                DTYPES[work.options.dtype],
                after_step,
                self._begin_pass if self.rank else None,
            )

    def _write(self, work: Work[GenerateOptions], state: State, condition: Condition) -> None:
        fields = carry(self.model, work, work.artifact("encoded"), seed=work.options.seed)
        latents = apply_known(state.x, condition) if self.model.variant == "5b" else state.x
        write_tensors(work.output, "latents", fields, {"latents": latents})
