"""Base of the `encode` workers that encode all texts of a shard first, then all images.

So the networks for text and those for images are never in memory together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch

from stages.runtime.partial import StateMissing, load_state, save_state
from stages.runtime.worker import AnyOptions, Work, Worker

TEXT, IMAGE = "text", "image"


class TextThenImage(Worker[AnyOptions]):
    """Two phases, text and image. Between them the tensors of an item's texts are in `work.partial`."""

    def phases(self) -> tuple[str, ...]:
        return TEXT, IMAGE

    def uses_model(self, work: Work[AnyOptions]) -> bool:
        return self.phase == IMAGE or load_state(work.partial) is None

    def load(self, options: AnyOptions) -> None:
        """Load the networks of the phase. Raises JobError."""
        if self.phase == TEXT:
            self.load_text_encoder(options)
        else:
            self.load_image_encoder(options)

    @torch.no_grad()
    def run(self, work: Work[AnyOptions]) -> None:
        found = load_state(work.partial)
        if self.phase == IMAGE:
            if found is None:
                raise StateMissing(work.partial, f"the encoded text of {work.item.id}")
            self.write(work, found[1])
        elif found is None:
            save_state(work.partial, {}, self.encode_text(work))

    @abstractmethod
    def load_text_encoder(self, options: AnyOptions) -> None:
        """Load what `encode_text` needs. Raises JobError."""

    @abstractmethod
    def load_image_encoder(self, options: AnyOptions) -> None:
        """Load what `write` needs. Raises JobError."""

    @abstractmethod
    def encode_text(self, work: Work[AnyOptions]) -> dict[str, torch.Tensor]:
        """The tensors of an item's texts, by their names in `encoded`. Raises ItemError."""

    @abstractmethod
    def write(self, work: Work[AnyOptions], texts: Mapping[str, torch.Tensor]) -> None:
        """Encode the image of an item, and write the artifact with the tensors of its texts. Raises ItemError."""
