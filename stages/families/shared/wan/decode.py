"""Base of the `decode` workers of the families that use Wan's VAE."""

from typing import Any

from stages.families.shared.item import check_lineage
from stages.families.shared.wan.vae import load_vae
from stages.runtime.worker import AnyOptions, Work, Worker


class WanDecode(Worker[AnyOptions]):
    """Loads the VAE, and checks that latents are of its model."""

    def check(self, work: Work[AnyOptions]) -> None:
        check_lineage(work.artifact("latents"), self.model)

    def load(self, options: Any) -> None:
        """Load the VAE. Raises JobError."""
        self.vae = load_vae(self.model, options.vae_tiling, self.device)
