"""Options of the stages that handle video without a model, and of the writing of videos."""

from stages.runtime.options import Family, Option
from stages.runtime.size import size_text

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # of the files that a folder of videos is searched for
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tiff", ".tif")  # of the same for pictures
OTHER_ENDINGS = (  # of videos and pictures that such a search leaves out, and says so
    *(".webm", ".m4v", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".f4v", ".3gp", ".3g2", ".ogv"),
    *(".vob", ".mxf", ".asf", ".divx", ".rm", ".rmvb", ".y4m", ".qt", ".insv", ".gif", ".webp", ".heic", ".heif", ".avif"),
    *(".jfif", ".jpe", ".jp2", ".jxl", ".apng", ".tga", ".exr", ".hdr", ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
FITS = ("crop", "pad", "area", "short")

FIT = Option(
    "fit",
    str,
    "crop",
    "How a picture comes to the size: crop covers and cuts the middle, pad adds black bars, "
    "area keeps the picture's aspect and takes the size as an area, short takes the size's shorter side for its own",
    ("extract_frames", "concat"),
    choices=FITS,
)

WRITE_OPTIONS = (
    Option("crf", int, 16, "Quality of the H.264 video, lower is better", ("decode", "concat"), minimum=0, maximum=51),
    Option("lossless", bool, False, "Also write the clip lossless (FFV1), for concat to encode again", ("decode",)),
    Option("save_gif", bool, False, "Also write the clip as a GIF", ("decode",)),
    Option("save_frames", bool, False, "Also write every frame as a PNG", ("decode",)),
    Option("visualize", bool, False, "Also write a contact sheet: some frames side by side under the prompt", ("decode",)),
)

FAMILY = Family(
    name="media",
    version=2,
    options=(
        Option(
            "select",
            str,
            "last",
            "Which frames: the last one, the last COUNT (tail), the midpoints of COUNT segments, the first COUNT, all, or "
            "keyframes, which are the first, the last and those where most changes",
            ("extract_frames",),
            choices=("last", "tail", "segments", "first", "all", "keyframes"),
            by_recipe=True,
        ),
        Option(
            "count",
            int,
            8,
            "How many frames, for tail, segments and first",
            ("extract_frames",),
            minimum=1,
            by_recipe=True,
            maximum=100_000,
        ),
        Option(
            "size",
            str,
            "",
            "Size of the frames, width*height; empty keeps the video's",
            ("extract_frames",),
            form=lambda text: size_text(text) if text else "",
            by_recipe=True,
        ),
        FIT,
        Option(
            "multiple",
            int,
            16,
            "With fit area and short: both sides are multiples of this",
            ("extract_frames",),
            "pixels",
            minimum=2,
            by_recipe=True,
            maximum=1024,
        ),
        Option(
            "area_rule",
            str,
            "joint",
            "With fit area: joint rounds one side down and gives the other what is left of the area, "
            "independent rounds both down",
            ("extract_frames",),
            choices=("joint", "independent"),
            by_recipe=True,
        ),
        Option(
            "canny",
            bool,
            False,
            "Also write the hard edges of each frame, for a ControlNet",
            ("extract_frames",),
            by_recipe=True,
        ),
        Option(
            "mininterv",
            int,
            5,
            "From one keyframe to the next at least",
            ("extract_frames",),
            "frames",
            minimum=1,
            maximum=100_000,
        ),
        Option(
            "maxinterv",
            int,
            5,
            "From one keyframe to the next at most, where the video moves; the same as mininterv: exactly",
            ("extract_frames",),
            "frames",
            minimum=1,
            maximum=100_000,
        ),
        Option(
            "allow_truncated",
            bool,
            False,
            "Use the good frames of a video that is truncated or damaged, before and after the damage, each at its time; "
            "otherwise such a video is an error",
            ("extract_frames", "concat"),
        ),
        Option("part", int, 0, "Which of PARTS", ("propagate",), minimum=0, by_recipe=True, maximum=99),
        Option(
            "parts",
            int,
            1,
            "Into how many a film's intervals between keys are divided",
            ("propagate",),
            minimum=1,
            maximum=100,
        ),
        Option(
            "engine",
            str,
            "auto",
            "How pictures are carried from a key: warp follows the flow, hybrid puts patches where the flow fails, patch "
            "puts them everywhere, auto does the better of both, ebsynth runs the program of that name from the PATH",
            ("propagate",),
            choices=("auto", "hybrid", "warp", "patch", "ebsynth"),
        ),
        Option(
            "poisson",
            bool,
            True,
            "Blend the two sides along their gradients too: fewer ghosts",
            ("propagate",),
        ),
        Option(
            "residual",
            float,
            20.0,
            "By how much a colour may differ before the flow is not trusted there",
            ("propagate",),
            "levels of 255",
            minimum=0,
            maximum=255,
        ),
        Option(
            "full_above",
            float,
            0.25,
            "With engine auto: patches are searched everywhere in a frame whose flow fails in more than this share of it",
            ("propagate",),
            minimum=0,
            maximum=1,
        ),
        Option("patch_size", int, 5, "Side of a patch", ("propagate",), "pixels", choices=(3, 5, 7)),
        Option(
            "patch_votes",
            int,
            3,
            "How often patches are searched and vote on the colours, at each size of the picture",
            ("propagate",),
            minimum=1,
            maximum=100,
        ),
        Option(
            "patch_iters",
            int,
            2,
            "Sweeps over the picture in one search for patches",
            ("propagate",),
            minimum=1,
            maximum=100,
        ),
        Option(
            "patch_radius",
            int,
            64,
            "How far from its best match so far a search looks",
            ("propagate",),
            "pixels",
            minimum=1,
            maximum=16384,
        ),
        Option("keep_audio", bool, True, "Keep the sound of the source in front", ("concat",)),
        Option("prompts_log", bool, False, "Also write prompts_log.txt", ("concat",), by_recipe=True),
        Option(
            "names",
            str,
            [],
            "What prompts_log.txt calls the source and each clip",
            ("concat",),
            many=True,
            default_text="the names of the files",
            by_recipe=True,
        ),
        WRITE_OPTIONS[0],
    ),
    workers={
        "extract_frames": "stages.media.extract:ExtractFrames",
        "propagate": "stages.media.propagate.worker:Propagate",
        "concat": "stages.media.film:Concat",
    },
    needs_model=lambda stage, values: False,
)
