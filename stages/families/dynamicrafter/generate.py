"""Generate for DynamiCrafter: noise and a condition to latents, `batch_size` clips at once."""

from collections.abc import Sequence

from stages.families.dynamicrafter.denoiser import Denoised, Denoiser
from stages.families.dynamicrafter.options import GenerateOptions
from stages.families.shared.item import carry, check_frames, check_lineage
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.model import Model
from stages.runtime.progress import StepBar
from stages.runtime.worker import Work, Worker


class Generate(Worker[GenerateOptions]):
    """Writes `latents` float32 [1, 4, T, h, w]."""

    def __init__(self, model: Model | None, device: str):
        super().__init__(model, device)
        self.works: list[Work] = []  # all items of the job, in order
        self.denoised: dict[str, Denoised] = {}  # by the item's output: denoised together with an earlier item
        self.unbatchable: set[str] = set()  # outputs of items of a batch that failed

    def check(self, work: Work[GenerateOptions]) -> None:
        check_lineage(work.artifact("encoded"), self.model)
        check_frames(work.artifact("encoded"), 1, work.artifact("encoded").fields["num_frames"])

    def prepare(self, works: Sequence[Work[GenerateOptions]]) -> None:
        self.works = list(works)

    def load(self, options: GenerateOptions) -> None:
        """Load the U-Net. Raises JobError."""
        self.denoiser = Denoiser(self.model, options.dtype, self.device)

    def run(self, work: Work[GenerateOptions]) -> None:
        if work.item.output not in self.denoised:
            self._denoise(self._batch(work))
        denoised = self.denoised.pop(work.item.output)
        for call in denoised.redone:
            log("redone_in_float32", item=work.item.id, **call)
        encoded, seed = work.artifact("encoded"), work.options.seed
        fields = carry(self.model, work, encoded, "loop", seed=seed, redone=denoised.redone)
        write_tensors(work.output, "latents", fields, {"latents": denoised.latents})

    def _batch(self, work: Work[GenerateOptions]) -> list[Work]:
        """This item and later ones of the same size and options, seeds aside; at most `batch_size`."""
        if work.item.output in self.unbatchable:
            return [work]
        outputs = [other.item.output for other in self.works]
        later = self.works[outputs.index(work.item.output) + 1 :]
        key = batch_key(work)
        others = [other for other in later if batch_key(other) == key and other.item.output not in self.unbatchable]
        return [work, *others][: work.options.batch_size]

    def _denoise(self, works: Sequence[Work[GenerateOptions]]) -> None:
        """Denoise a batch. If one of several clips fails, each is denoised by itself instead."""
        options = works[0].options
        seeds = [work.options.seed for work in works]
        frames = works[0].artifact("encoded").fields["num_frames"]
        label = works[0].item.id
        if len(works) > 1:
            label += f" and {len(works) - 1} more"
        try:
            conditions = [work.artifact("encoded").tensors() for work in works]
            with StepBar(options.num_inference_steps, label) as bar:
                denoised = self.denoiser(conditions, seeds, frames, options, bar.update)
        except ItemError:
            if len(works) == 1:
                raise
            self.unbatchable |= {work.item.output for work in works}
            return self._denoise(works[:1])
        self.denoised |= {work.item.output: clip for work, clip in zip(works, denoised, strict=True)}


def batch_key(work: Work[GenerateOptions]) -> tuple:
    """Equal for items that can be denoised in one batch."""
    fields = work.artifact("encoded").fields
    options = {name: value for name, value in work.options.values().items() if name != "seed"}
    return repr(options), fields["width"], fields["height"], fields["num_frames"]
