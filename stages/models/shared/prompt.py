"""The prompt of an item of `encode`."""

from stages.runtime.errors import ItemError
from stages.runtime.worker import Work


def prompt_of(work: Work) -> tuple[str, str]:
    """The prompt and the raw caption behind it. A prompt that is given wins over a caption's. Raises ItemError."""
    caption = work.inputs.get("caption")
    if work.options["prompt"]:
        return work.options["prompt"], ""
    if caption is None:
        raise ItemError(f"item {work.item.id} has no prompt", "add --prompt TEXT, or --caption FILE of caption_vlm")
    return caption.fields["prompt"], caption.fields["raw"]
