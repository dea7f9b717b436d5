"""DynamiCrafter image-to-video (Xing et al. 2023, arXiv:2310.12190): its stages, and a Python pipeline."""

from typing import Any

__all__ = ["DynamiCrafterImg2VideoPipeline", "save_video"]


def __getattr__(name: str) -> Any:
    """Import the pipeline on first access: the plan reads this package's options without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.families.dynamicrafter import pipeline

    return getattr(pipeline, name)
