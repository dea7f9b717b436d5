"""Options of the stages that handle video without a model, and of the writing of videos."""

from stages.runtime.options import Family, Option

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv")  # of the files that a folder of videos is searched for
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tiff", ".tif")  # of the same for pictures
FITS = ("crop", "pad", "area")

FIT = Option(
    "fit",
    str,
    "crop",
    "How a picture comes to the size: crop covers and cuts the middle, pad adds black bars, "
    "area keeps the picture's aspect and takes the size as an area",
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
    version=1,
    options=(
        Option(
            "select",
            str,
            "last",
            "Which frames: the last one, the last COUNT (tail), the midpoints of COUNT segments, the first COUNT, or all",
            ("extract_frames",),
            choices=("last", "tail", "segments", "first", "all"),
            by_recipe=True,
        ),
        Option(
            "count", int, 8, "How many frames, for tail, segments and first", ("extract_frames",), minimum=1, by_recipe=True
        ),
        Option(
            "size", str, "", "Size of the frames, width*height; empty keeps the video's", ("extract_frames",), by_recipe=True
        ),
        FIT,
        Option(
            "multiple",
            int,
            16,
            "With fit area: both sides are multiples of this",
            ("extract_frames",),
            "pixels",
            minimum=2,
            by_recipe=True,
        ),
        Option("allow_truncated", bool, False, "Take the good frames of a truncated video", ("extract_frames", "concat")),
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
        "concat": "stages.media.film:Concat",
    },
    needs_model=lambda stage, values: False,
)
