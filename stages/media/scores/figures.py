"""Every figure of the built-in scores: its unit, which direction is better, and its meaning."""

from typing import NamedTuple

from stages.runtime.errors import did_you_mean

HIGHER, LOWER = "higher", "lower"


class Figure(NamedTuple):
    """A figure. `better` is HIGHER, LOWER, or "" where neither is better in general."""

    unit: str
    better: str
    help: str


ORDERS = {"highest": HIGHER, "lowest": LOWER}  # words before a figure by which a take is picked

LEVELS = "levels of 255"
SHARE = "share, 0 to 1"


def _fault(name: str, help: str) -> dict[str, Figure]:
    """The three figures of a fault of frames."""
    return {
        f"health.{name}_frames": Figure("frames", LOWER, f"number of frames that are {help}"),
        f"health.{name}_share": Figure(SHARE, LOWER, f"share of frames that are {help}"),
        f"health.{name}_at": Figure("seconds", "", f"time of the first frame that is {help}"),
    }


def _walk(name: str, unit: str, help: str) -> dict[str, Figure]:
    """The figures of a value that is followed over time."""
    return {
        f"health.{name}_mean": Figure(unit, "", f"{help}, mean over the frames"),
        f"health.{name}_slope": Figure(f"{unit} per second", "", f"slope of the {help}, by least squares"),
        f"health.{name}_range": Figure(unit, "", f"highest minus lowest {help} of a frame"),
    }


FIGURES: dict[str, Figure] = {
    "health.faulty_share": Figure(SHARE, LOWER, "share of frames that are frozen, black, flat or exploding"),
    **_fault("frozen", "frozen"),
    **_fault("black", "black"),
    **_fault("flat", "of one colour and not black"),
    **_fault("exploding", "noise-like or newly saturated"),
    "health.blur": Figure("pixels", LOWER, "width of the edges, by ffmpeg's blurdetect"),
    "health.blockiness": Figure("ratio", LOWER, "strength of a block grid, by ffmpeg's blockdetect"),
    "health.sharpness": Figure("levels squared", "", "variance of the Laplacian of the luma"),
    "health.noise": Figure(LEVELS, LOWER, "standard deviation of the noise, by Immerkaer's estimate"),
    "health.clipped_share": Figure(SHARE, LOWER, "share of channel values at the ends of their range"),
    **_walk("luma", LEVELS, "brightness"),
    **_walk("saturation", LEVELS, "saturation"),
    "health.colour_slope": Figure("CIE Lab units per second", "", "slope of the mean colour (a*, b*), by least squares"),
    "health.colour_range": Figure("CIE Lab units", "", "largest distance of a frame's mean colour from the first frame's"),
    "motion.magnitude": Figure("share of the diagonal per frame", "", "mean length of the optical flow"),
    "motion.dynamic": Figure("share of the diagonal per frame", "", "mean length of the 5 % longest flow vectors"),
    "motion.smoothness": Figure(SHARE, HIGHER, "1 for uniform motion, 0 for motion that reverses or stops at every frame"),
    "motion.still_share": Figure(SHARE, "", "share of steps without motion"),
    "motion.repeated_frames": Figure("frames", LOWER, "frames equal to the one before, within motion"),
    "motion.dropped_frames": Figure("frames", LOWER, "steps of 1.6 times the motion before and after, or more"),
    "motion.cuts": Figure("cuts", "", "changes of the scene, by the rule of ffmpeg's scdet"),
    "flicker.temporal": Figure(SHARE, HIGHER, "VBench's temporal flickering: 1 minus the mean difference of frames"),
    "flicker.warping_error": Figure(
        "squared, 0 to 3", LOWER, "difference of a frame and the next one, moved back by the flow"
    ),
    "flicker.brightness": Figure(LEVELS, LOWER, "amplitude of brightness that alternates from frame to frame"),
    "seams.count": Figure("seams", "", "number of seams between the parts of the film"),
    "seams.pixels": Figure(LEVELS, LOWER, "largest difference of the frames at a seam"),
    "seams.pixels_ratio": Figure("ratio", LOWER, "largest difference at a seam, as a multiple of the differences around it"),
    "seams.colour": Figure("CIE Lab units", LOWER, "largest distance of the mean colours at a seam"),
    "seams.motion_ratio": Figure("ratio", HIGHER, "smallest motion after a seam, as a share of the motion before it"),
    "seams.stall_frames": Figure("frames", LOWER, "most frames that stand still after a seam, where there was motion"),
    "drift.colour": Figure("CIE Lab units", LOWER, "distance of the mean colours of the last part and the first"),
    "drift.colour_slope": Figure("CIE Lab units per part", LOWER, "slope of the mean colour of the parts"),
    "drift.luma_slope": Figure(f"{LEVELS} per part", "", "slope of the brightness of the parts"),
    "drift.saturation_slope": Figure(f"{LEVELS} per part", "", "slope of the saturation of the parts"),
    "drift.contrast_slope": Figure("share of the first part's per part", "", "slope of the contrast of the parts"),
    "drift.sharpness_slope": Figure("share of the first part's per part", "", "slope of the sharpness of the parts"),
    "drift.source_colour": Figure("CIE Lab units", LOWER, "distance of the mean colours of the last part and the source"),
    "drift.source_contrast": Figure("ratio", "", "contrast of the last part, as a multiple of the source's"),
    "drift.source_sharpness": Figure("ratio", "", "sharpness of the last part, as a multiple of the source's"),
    "reference.psnr": Figure("dB", HIGHER, "peak signal-to-noise ratio against the reference, by ffmpeg's psnr"),
    "reference.ssim": Figure(SHARE, HIGHER, "structural similarity to the reference, by ffmpeg's ssim"),
    "reference.vmaf": Figure("0 to 100", HIGHER, "VMAF against the reference, by ffmpeg's libvmaf"),
    "reference.frames": Figure("frames", "", "number of frames that were compared with the reference"),
}


def parse_pick(text: str) -> tuple[str, str]:
    """The figure by which a take is picked, and the better direction, HIGHER or LOWER.

    Of "highest health.blur" the direction is HIGHER; of "health.blur" it is that of FIGURES, and "" if it has none. Figures
    of networks are better when they are higher.
    """
    order, _, figure = text.rpartition(" ")
    known = FIGURES.get(figure)
    return figure, ORDERS.get(order, "") or (known.better if known else HIGHER)


def pick_fault(text: str) -> str | None:
    """What is wrong with a figure by which a take is to be picked, or None."""
    order, _, figure = text.rpartition(" ")
    if order and order not in ORDERS:
        return "write highest FIGURE or lowest FIGURE"
    if figure not in FIGURES and figure.partition(".")[0] in {name.partition(".")[0] for name in FIGURES}:
        return f"{did_you_mean(figure, FIGURES)} docs/scores.md lists the figures".strip()
    if figure in FIGURES and not parse_pick(text)[1]:
        return f"neither direction is better in general: write highest {figure} or lowest {figure}"
    return None
