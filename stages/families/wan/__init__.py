"""Wan2.2 image-to-video and video-to-video: its stages, and Python pipelines."""

from typing import Any

__all__ = ["WanV2V", "WanV2V5B", "save_video"]


def __getattr__(name: str) -> Any:
    """Import the pipelines on first access: the plan reads this package's options without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.families.wan import pipeline

    return getattr(pipeline, name)
