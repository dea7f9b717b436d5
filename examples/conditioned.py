"""Clips with a further condition, such as the mood of the music or the angles of a camera, for `train text2video`."""

from stages.families.shared.training.data import TextVideoDataset
from stages.families.text2video.condition import read_condition


class ConditionedDataset(TextVideoDataset):
    """`conditions/NAME.json` is a list of numbers for `videos/NAME.mp4`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        folder = self.folder / "conditions"
        self.conditions = {video.name: read_condition(folder / f"{video.stem}.json") for video, _ in self.pairs}

    def __getitem__(self, key):
        item = super().__getitem__(key)
        return {**item, "condition": self.conditions[item["name"]]}

    def augment_text(self, text):
        """Leave out the full stop of every second caption."""
        return text.rstrip(".") if self.rng.random() < 0.5 else text
