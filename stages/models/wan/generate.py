"""Generate for Wan2.2 image-to-video: noise and a condition become the latents of a clip.

The 14b has two experts: one for the steps with much noise, one for the rest. Each is a phase of the shard, so one expert
is in memory at a time and each is loaded once; between the phases an item waits in `work.partial`.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from tqdm import tqdm

from stages.models.shared.loading import DTYPES, loading
from stages.models.shared.origin import check_frames, check_origin, model_fields
from stages.models.shared.wan.transformer import load_transformer
from stages.models.wan import checkpoint
from stages.models.wan.options import check_experts
from stages.models.wan.sampler import (
    Condition,
    State,
    concatenated,
    denoise,
    imposed,
    make_scheduler,
    noise,
    replaced,
    switch_step,
)
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Setting, Work, Worker

HIGH, LOW = "high", "low"


class Generate(Worker):
    """Writes `latents` float32 [1, C, T, h, w]."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.join = replaced if self.model.variant == "5b" else concatenated

    def phases(self) -> tuple[str, ...]:
        return ("",) if self.model.variant == "5b" else (HIGH, LOW)

    def check(self, work: Work) -> None:
        encoded = work.inputs["encoded"]
        check_origin(encoded, self.model)
        _, channels, frames, *_ = encoded.shapes.get("mask", (0,) * 5)
        if channels != (1 if self.model.variant == "5b" else 4):
            raise ItemError(f"the mask in {encoded.path} has {channels} channels", "make it again with encode")
        check_frames(encoded, 1 if self.model.variant == "5b" else frames)
        check_experts(self.model.variant, work.options)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Let go of the expert before and read the schedule. Raises JobError.

        The weights are read with the first step that needs them: a schedule may leave an expert nothing to do, and after
        an interruption all items may be past its phase.
        """
        self.transformer = None
        gc.collect()
        self.options, self.phase = options, phase
        with loading(self.model):
            self.schedule = UniPCMultistepScheduler.load_config(self.model.folder(), subfolder="scheduler")
            UniPCMultistepScheduler.from_config(self.schedule)  # one that makes none is told here

    def run(self, work: Work, phase: str) -> None:
        options, encoded = work.options, work.inputs["encoded"]
        scheduler = make_scheduler(self.schedule, options["steps"], options["shift"], self.device, options["sigma_grid"])
        switch = switch_step(scheduler, options["boundary_ratio"]) if phase else 0
        first, last = (0, switch) if phase == HIGH else (switch, options["steps"])
        condition = self._condition(encoded, options)
        state = checkpoint.load(work.partial, self.device)
        if state is None and phase == LOW and switch > 0:
            raise ItemError(f"{work.partial}, the work of the high-noise expert, is lost", "run again")
        state = state or self._start(condition, options["seed"])
        if state.step < last:
            state = self._denoise(work, state, scheduler, first, last, condition)
        if phase == HIGH:
            checkpoint.save(work.partial, state)
        else:
            self._write(work, state, condition)

    def _condition(self, encoded: Artifact, options: Mapping[str, Any]) -> Condition:
        """The encoded condition, on the device."""
        tensors = encoded.tensors()
        needed = {"image_latents", "mask"} | ({"negative_prompt_embeds"} if max(guidances(options)) > 1 else set())
        if missing := sorted(needed - tensors.keys()):
            raise ItemError(f"{encoded.path} lacks the tensor {missing[0]}", "make it again with encode")
        dtype = DTYPES[options["dtype"]]
        negative = tensors.get("negative_prompt_embeds")
        return Condition(
            image=tensors["image_latents"].to(self.device),
            known=tensors["mask"].to(self.device, torch.float32),
            prompt=tensors["prompt_embeds"].to(self.device, dtype),
            negative=None if negative is None else negative.to(self.device, dtype),
        )

    def _start(self, condition: Condition, seed: int) -> State:
        shape = (1, condition.image.shape[1], *condition.known.shape[2:])
        return State(step=0, x=noise(shape, seed).to(self.device))

    def _denoise(self, work: Work, state: State, scheduler, first: int, last: int, condition: Condition) -> State:
        if self.transformer is None:
            name = "transformer_2" if self.phase == LOW else "transformer"
            self.transformer = load_transformer(self.model, name, self.options, torch.device(self.device))
        every = work.options["checkpoint_every"]
        label = f"{work.item.id} {self.phase}".strip()
        with tqdm(total=last - first, initial=state.step - first, desc=label, unit="step", disable=None, leave=False) as bar:

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
                self.join,
                guidances(work.options)[self.phase == LOW],
                DTYPES[work.options["dtype"]],
                after_step,
            )

    def _write(self, work: Work, state: State, condition: Condition) -> None:
        passed_on = ("width", "height", "num_frames", "prompt", "raw")
        fields = {name: work.inputs["encoded"].fields[name] for name in passed_on}
        fields |= {**model_fields(self.model, work), "seed": work.options["seed"]}
        latents = imposed(state.x, condition) if self.model.variant == "5b" else state.x
        write_tensors(work.output, "latents", fields, {"latents": latents})


def guidances(options: Mapping[str, Any]) -> tuple[float, float]:
    """Guidance of the high-noise (or only) and of the low-noise expert."""
    high, low = options["guidance_scale"], options["guidance_scale_2"]
    return high, high if low is None else low
