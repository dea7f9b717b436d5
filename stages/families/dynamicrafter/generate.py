"""Generate for DynamiCrafter: noise and a condition to latents, `batch_size` clips at once."""

from collections.abc import Hashable, Sequence

from stages.families.dynamicrafter.denoiser import Denoised, Denoiser
from stages.families.dynamicrafter.options import GenerateOptions
from stages.families.shared.item import carry, check_frames, check_lineage
from stages.runtime.artifacts import write_tensors
from stages.runtime.batching import BatchWorker
from stages.runtime.log import log
from stages.runtime.progress import StepBar
from stages.runtime.worker import Work


class Generate(BatchWorker[GenerateOptions, Denoised]):
    """Writes `latents` float32 [1, 4, T, h, w]."""

    def check(self, work: Work[GenerateOptions]) -> None:
        check_lineage(work.artifact("encoded"), self.model)
        check_frames(work.artifact("encoded"), 1, work.artifact("encoded").fields["num_frames"])

    def load(self, options: GenerateOptions) -> None:
        """Load the U-Net. Raises JobError."""
        self.denoiser = Denoiser(self.model, options.dtype, self.device)

    def batch_size(self, work: Work[GenerateOptions]) -> int:
        return work.options.batch_size

    def batch_key(self, work: Work[GenerateOptions]) -> Hashable:
        """The size and the options, seeds aside."""
        fields = work.artifact("encoded").fields
        options = {name: value for name, value in work.options.values().items() if name != "seed"}
        return repr(options), fields["width"], fields["height"], fields["num_frames"]

    def compute(self, works: Sequence[Work[GenerateOptions]]) -> Sequence[Denoised]:
        options = works[0].options
        seeds = [work.options.seed for work in works]
        frames = works[0].artifact("encoded").fields["num_frames"]
        label = works[0].item.id
        if len(works) > 1:
            label += f" and {len(works) - 1} more"
        conditions = [work.artifact("encoded").tensors() for work in works]
        with StepBar(options.num_inference_steps, label) as bar:
            return self.denoiser(conditions, seeds, frames, options, bar.update)

    def write(self, work: Work[GenerateOptions], result: Denoised) -> None:
        for call in result.redone:
            log("redone_in_float32", item=work.item.id, **call)
        encoded, seed = work.artifact("encoded"), work.options.seed
        fields = carry(self.model, work, encoded, "loop", seed=seed, redone=result.redone)
        write_tensors(work.output, "latents", fields, {"latents": result.latents})
