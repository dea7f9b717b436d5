"""Generate for DynamiCrafter: noise and a condition become latents, several clips at once where that is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from stages.models.dynamicrafter.denoiser import Denoiser, Made
from stages.models.shared.origin import check_frames, check_origin, model_fields
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.worker import Setting, Work, Worker


class Generate(Worker):
    """Writes `latents` float32 [1, 4, T, h, w]."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.coming: list[Work] = []
        self.made: dict[str, Made] = {}  # by the item's output: made with an item before it
        self.alone: set[str] = set()  # items of a batch that could not be made

    def check(self, work: Work) -> None:
        check_origin(work.inputs["encoded"], self.model)
        check_frames(work.inputs["encoded"], 1, work.inputs["encoded"].fields["num_frames"])

    def announce(self, works: Sequence[Work]) -> None:
        self.coming = list(works)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the U-Net. Raises JobError."""
        self.denoiser = Denoiser(self.model, options["dtype"], self.device)

    def run(self, work: Work, phase: str) -> None:
        if work.item.output not in self.made:
            self._make(self._batch(work))
        made = self.made.pop(work.item.output)
        for facts in made.redone:
            log("redone_in_float32", item=work.item.id, **facts)
        passed_on = ("width", "height", "num_frames", "prompt", "raw", "loop")
        fields = {name: work.inputs["encoded"].fields[name] for name in passed_on}
        fields |= {**model_fields(self.model, work), "seed": work.options["seed"], "redone": made.redone}
        write_tensors(work.output, "latents", fields, {"latents": made.latents})

    def _batch(self, work: Work) -> list[Work]:
        """This item and those after it that can be made with it: of its size, and with its options but for the seed."""
        if work.item.output in self.alone:
            return [work]
        outputs = [other.item.output for other in self.coming]
        later = self.coming[outputs.index(work.item.output) + 1 :]
        alike = [other for other in later if form(other) == form(work) and other.item.output not in self.alone]
        return [work, *alike][: work.options["batch_size"]]

    def _make(self, works: Sequence[Work]) -> None:
        """Make clips together. Where one of several cannot be made, each is made alone instead."""
        options = works[0].options
        seeds = [work.options["seed"] for work in works]
        frames = works[0].inputs["encoded"].fields["num_frames"]
        label = works[0].item.id + f" and {len(works) - 1} more" * (len(works) > 1)
        try:
            conditions = [work.inputs["encoded"].tensors() for work in works]
            with tqdm(total=options["num_inference_steps"], desc=label, unit="step", disable=None, leave=False) as bar:
                made = self.denoiser(conditions, seeds, frames, options, bar.update)
        except ItemError:
            if len(works) == 1:
                raise
            self.alone |= {work.item.output for work in works}
            return self._make(works[:1])
        self.made |= {work.item.output: one for work, one in zip(works, made, strict=True)}


def form(work: Work) -> tuple:
    """What clips of a batch have in common."""
    fields = work.inputs["encoded"].fields
    alike = {name: value for name, value in work.options.items() if name != "seed"}
    return repr(alike), fields["width"], fields["height"], fields["num_frames"]
