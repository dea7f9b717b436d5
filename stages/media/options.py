"""Options of the stages without a model, and of writing videos."""

import re

from stages.media.scores.figures import pick_fault
from stages.runtime.options import Family, Implementation, Options, option
from stages.runtime.sizes import size_text

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # of videos that are found in a folder
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tiff", ".tif")  # of images that are found in a folder
OTHER_ENDINGS = (  # of videos and images that are ignored, with a warning
    *(".webm", ".m4v", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".f4v", ".3gp", ".3g2", ".ogv"),
    *(".vob", ".mxf", ".asf", ".divx", ".rm", ".rmvb", ".y4m", ".qt", ".insv", ".gif", ".webp", ".heic", ".heif", ".avif"),
    *(".jfif", ".jpe", ".jp2", ".jxl", ".apng", ".tga", ".exr", ".hdr", ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
FITS = ("crop", "pad", "area", "short")
SCORES = ("health", "motion", "flicker", "seams", "drift", "reference")  # the groups of figures that need no model


class FitOption(Options):
    fit: str = option(
        "crop",
        "Fit to the size: crop scales to cover it and crops the centre; pad adds black bars; area keeps the aspect ratio "
        "and the area of the size; short keeps the aspect ratio and the shorter side of the size",
        choices=FITS,
        default_text="crop; in recipes v2v and chain: area",
    )


class CrfOption(Options):
    crf: int = option(16, "Quality of the H.264 video (x264's CRF), lower is better", minimum=0, maximum=51)


class PrivateOption(Options):
    private: bool = option(False, "Leave the prompt out of the metadata of the video", set_by_recipe=True, neutral=False)


class WriteOptions(CrfOption, PrivateOption):
    """Options of decode for writing a clip."""

    fps: float = option(8.0, "Frame rate of the clip", unit="frames per second", minimum=1, maximum=240)
    lossless: bool = option(False, "Also write the clip losslessly (FFV1), as input of concat")
    save_gif: bool = option(False, "Also write the clip as a GIF")
    save_frames: bool = option(False, "Also write every frame as a PNG")
    visualize: bool = option(False, "Also write a contact sheet: the prompt and some frames side by side")


class AllowTruncatedOption(Options):
    allow_truncated: bool = option(
        False,
        "Use the good frames of a truncated or damaged video, each at its time; off: such a video is an error",
    )


class ExtractFramesOptions(FitOption, AllowTruncatedOption):
    select: str = option(
        "last",
        "Frames to select: the last one, the last COUNT (tail), the midpoints of COUNT segments, the first COUNT, all, or "
        "keyframes: the first, the last and those with the most motion",
        choices=("last", "tail", "segments", "first", "all", "keyframes"),
        set_by_recipe=True,
    )
    count: int = option(8, "Number of frames for tail, segments and first", minimum=1, set_by_recipe=True, maximum=100_000)
    size: str = option(
        "",
        "Size of the frames, width*height; empty: the size of the video",
        form=lambda text: size_text(text) if text else "",
        set_by_recipe=True,
    )
    multiple: int = option(
        16,
        "With --fit area and short: both sides are multiples of this",
        unit="pixels",
        minimum=2,
        set_by_recipe=True,
        maximum=1024,
    )
    area_rule: str = option(
        "joint",
        "With --fit area: joint rounds one side down and fits the other to the rest of the area, "
        "independent rounds both sides down",
        choices=("joint", "independent"),
        set_by_recipe=True,
    )
    canny: bool = option(
        False, "Also write the hard edges of each frame, as control maps of a ControlNet", set_by_recipe=True
    )
    min_interval: int = option(
        5, "Shortest interval between keyframes", aliases=("mininterv",), unit="frames", minimum=1, maximum=100_000
    )
    max_interval: int = option(
        5,
        "Longest interval between keyframes with motion; equal to min_interval: the exact interval",
        aliases=("maxinterv",),
        unit="frames",
        minimum=1,
        maximum=100_000,
    )


class PropagateOptions(Options):
    part: int = option(0, "Part to propagate, 0 to PARTS - 1", minimum=0, set_by_recipe=True, maximum=99)
    parts: int = option(1, "Number of parts that the intervals between keyframes are divided into", minimum=1, maximum=100)
    engine: str = option(
        "auto",
        "Propagation from a keyframe: warp follows the flow, hybrid adds patches where the flow fails, patch uses patches "
        "everywhere, auto chooses hybrid or patches per frame, ebsynth runs that program from the PATH",
        choices=("auto", "hybrid", "warp", "patch", "ebsynth"),
    )
    poisson: bool = option(True, "Blend the results from both keyframes by their gradients (Poisson), against ghosting")
    residual: float = option(
        20.0,
        "Colour difference above which the flow is unreliable",
        unit="levels of 255",
        minimum=0,
        maximum=255,
    )
    full_above: float = option(
        0.25,
        "With --engine auto: use patches in the whole frame if its flow fails in more than this share of it",
        minimum=0,
        maximum=1,
    )
    patch_size: int = option(5, "Side of a patch", unit="pixels", choices=(3, 5, 7))
    patch_votes: int = option(
        3, "Rounds of patch search and voting at each size of the image pyramid", minimum=1, maximum=100
    )
    patch_iters: int = option(2, "PatchMatch sweeps over the image in one patch search", minimum=1, maximum=100)
    patch_radius: int = option(
        64, "Radius of the random search around the best match", unit="pixels", minimum=1, maximum=16384
    )


class PickOptions(Options):
    by: str = option(
        "",
        "Figure of the scores by which a take is chosen: the take with the better value, or highest FIGURE, lowest FIGURE; "
        "empty: the first take",
        set_by_recipe=True,
        check=pick_fault,
    )
    take: int = option(
        0,
        "Number of the take to choose, from 1, whatever its scores; 0: by the figure",
        minimum=0,
        maximum=100,
        set_by_recipe=True,
    )


class ConcatOptions(FitOption, AllowTruncatedOption, CrfOption, PrivateOption):
    keep_audio: bool = option(True, "Keep the sound of the source")
    extras: bool = option(
        False,
        "Put copies of the GIF, the images and the contact sheet of a single clip beside the film",
        set_by_recipe=True,
        neutral=False,
    )
    prompts_log: bool = option(
        False, "Also write prompts_log.txt, with the prompt and seed of each clip", set_by_recipe=True
    )
    cuts: list[str] = option(
        [],
        "Clips that do not go on from the one before, each as its number from 1 and its source, such as 3: gull.png; all "
        "their frames are kept",
        set_by_recipe=True,
        neutral=[],
        check=lambda text: None if re.match(r"[1-9]\d*: ", text) else "write NUMBER: SOURCE, such as 3: gull.png",
    )
    names: list[str] = option(
        [],
        "Names of the source and of each clip in prompts_log.txt",
        default_text="the names of the files",
        set_by_recipe=True,
    )


class ScoreOptions(AllowTruncatedOption):
    scores: list[str] = option(
        [*SCORES],
        "Groups of figures to measure; seams and drift need parts, reference needs a reference",
        choices=SCORES,
        set_by_recipe=True,
        default_text="all",
    )
    reference: str | None = option(
        None, "Video that the film is compared with frame by frame: PSNR, SSIM, VMAF", is_file=True, neutral=None
    )
    seams: list[int] = option(
        [],
        "Frames at which a part of the film begins, for a film whose index does not list its parts",
        minimum=1,
        maximum=10**6,
        default_text="as the index of the film says",
        set_by_recipe=True,
    )
    aligned: bool | None = option(
        None,
        "The film shows its source frame by frame, as a new look of it does, so that the flow of the source tells flicker "
        "from motion",
        default_text="yes, if both have as many frames",
        set_by_recipe=True,
    )


FAMILY = Family(
    name="media",
    version=2,
    stages={
        "extract_frames": Implementation(
            worker="stages.media.extract:ExtractFrames",
            options=ExtractFramesOptions,
        ),
        "propagate": Implementation(
            worker="stages.media.propagate.worker:Propagate",
            options=PropagateOptions,
        ),
        "pick": Implementation(
            worker="stages.media.pick:Pick",
            options=PickOptions,
        ),
        "concat": Implementation(
            worker="stages.media.concat:Concat",
            options=ConcatOptions,
        ),
        "score": Implementation(
            worker="stages.media.scores.worker:Score",
            options=ScoreOptions,
            needs_model=lambda values: False,
        ),
    },
)
