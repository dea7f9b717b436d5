"""Scores of films that are degraded in known ways, against formulas and the program ffmpeg."""

import json
import re
from functools import cache

import cv2
import numpy as np
import pytest

from stages.media.scores.figures import FIGURES
from stages.media.write import VideoWriter
from tests import zoo
from tests.commands import stage

WIDTH, HEIGHT, FRAMES, FPS = 160, 96, 40, 16
SPEED = 2  # pixels per frame
COUNTS = [  # figures that are 0 for a film without fault
    *(f"health.{name}_frames" for name in ("frozen", "black", "flat", "exploding")),
    *("motion.repeated_frames", "motion.dropped_frames", "motion.cuts", "seams.stall_frames"),
]


@cache
def texture(seed=0) -> np.ndarray:
    """A smooth picture with detail, wider than the film, float64 [H, W', 3]."""
    noise = np.random.default_rng(seed).normal(0, 1, (HEIGHT, WIDTH + 200, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2) * 90 + cv2.GaussianBlur(noise, (0, 0), 8) * 300
    return (smooth + 128).clip(30, 225)


def moving(frames=FRAMES, speed=SPEED, seed=0) -> list[np.ndarray]:
    """The picture moves to the left by `speed` pixels per frame."""
    shifts = [np.float32([[1, 0, -speed * number], [0, 1, 0]]) for number in range(frames)]
    return [cv2.warpAffine(texture(seed), shift, (WIDTH, HEIGHT)).round().astype(np.uint8) for shift in shifts]


def write(path, frames, fps=FPS):
    """A lossless video."""
    with VideoWriter(path, frames[0].shape[1], frames[0].shape[0], fps, codec="lossless") as video:
        for frame in frames:
            video.write(np.ascontiguousarray(frame))
    return path


def score(film, *options, details=False) -> dict:
    """The figures of a film, or the whole fields of its scores, by the command of the stage."""
    output = film.with_suffix(".scores.json")
    stage("score", film, "-o", output, *options)
    fields = json.loads(output.read_text())["fields"]
    assert fields["figures"].keys() <= FIGURES.keys()
    return fields if details else fields["figures"]


def faults(figures) -> dict:
    """The counts that are not 0."""
    return {name: figures[name] for name in COUNTS if figures.get(name)}


def changed(frames, places, change) -> list[np.ndarray]:
    return [change(frame) if number in places else frame for number, frame in enumerate(frames)]


def levels(frame) -> np.ndarray:
    return np.asarray(frame).round().clip(0, 255).astype(np.uint8)


def with_noise(frames, sigma) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [levels(frame + generator.normal(0, sigma, frame.shape)) for frame in frames]


def test_a_film_without_fault_has_the_motion_that_was_drawn(tmp_path):
    figures = score(write(tmp_path / "a.mkv", moving()))
    assert faults(figures) == {} and figures["health.faulty_share"] == 0
    assert figures["motion.magnitude"] == pytest.approx(SPEED / np.hypot(WIDTH, HEIGHT), rel=0.05)
    assert figures["motion.smoothness"] > 0.95 and figures["motion.still_share"] == 0
    assert figures["flicker.warping_error"] < 1e-4 and figures["flicker.brightness"] < 0.5
    assert figures["seams.count"] == 0 and "drift.colour" not in figures and "reference.psnr" not in figures


DEGRADED = {
    "frozen": (lambda clip: [clip[min(n, 10)] if n < 25 else clip[n] for n in range(FRAMES)], {"health.frozen_frames": 14}),
    "black": (lambda clip: changed(clip, range(10, 19), lambda f: f * 0), {"health.black_frames": 9, "motion.cuts": 2}),
    "gray": (lambda clip: changed(clip, range(10, 19), lambda f: f * 0 + 120), {"health.flat_frames": 9}),
    "noise": (
        lambda clip: [*clip[:30], *with_noise([f * 0.2 + 100 for f in clip[30:]], 60)],
        {"health.exploding_frames": 10, "motion.cuts": 1},
    ),
    "saturated": (
        lambda clip: changed(clip, range(30, 40), lambda f: levels((f - 128.0) * 12 + 128)),
        {"health.exploding_frames": 10, "motion.cuts": 1},
    ),
    "repeated": (
        lambda clip: [clip[n - 1] if n % 8 == 4 else clip[n] for n in range(FRAMES)],
        {"motion.repeated_frames": 5},
    ),
    "dropped": (lambda clip: [clip[n] for n in range(FRAMES) if n % 8 != 4], {"motion.dropped_frames": 5}),
    "cut": (lambda clip: [*clip[:20], *(frame // 3 for frame in moving(seed=5)[20:])], {"motion.cuts": 1}),
}


@pytest.mark.parametrize("name", DEGRADED)
def test_a_fault_is_found_by_its_own_count_alone(tmp_path, name):
    degrade, expected = DEGRADED[name]
    assert faults(score(write(tmp_path / "a.mkv", degrade(moving())))) == pytest.approx(expected)


def test_faults_have_the_time_of_their_first_frame(tmp_path):
    clip = changed(moving(), range(32, 36), lambda frame: frame * 0)
    clip[10:26] = [clip[10]] * 16
    figures = score(write(tmp_path / "a.mkv", clip), "--scores", "health")
    assert figures["health.frozen_at"] == pytest.approx(10 / FPS)
    assert figures["health.black_at"] == pytest.approx(32 / FPS)
    assert figures["health.faulty_share"] == pytest.approx((15 + 4) / FRAMES)


def dark(clip):
    return [levels(frame * 0.06) for frame in clip]


def small_dot(_):
    frames = [np.full((HEIGHT, WIDTH, 3), 90, np.uint8) for _ in range(FRAMES)]
    for number, frame in enumerate(frames):
        cv2.circle(frame, (20 + 2 * number, 40), 2, (230, 40, 40), -1)
    return frames


@pytest.mark.parametrize(
    "kind",
    [
        dark,
        small_dot,
        lambda clip: moving(speed=0.1),
        lambda clip: [frame[:, :60] for frame in clip],
        lambda clip: [np.pad(frame, ((24, 24), (0, 0), (0, 0))) for frame in clip],
        lambda clip: [levels(frame * max(0.3, 1 - number / 40)) for number, frame in enumerate(clip)],
        lambda clip: [frame[:16, :20] for frame in clip],
    ],
    ids=["dark", "small dot", "slow", "portrait", "letterbox", "fade", "tiny"],
)
def test_odd_films_have_no_fault(tmp_path, kind):
    assert faults(score(write(tmp_path / "a.mkv", kind(moving())))) == {}


@pytest.mark.parametrize("kind", [zoo.varying_rate, zoo.hdr, zoo.odd_size, zoo.anamorphic])
def test_odd_files_have_no_fault(tmp_path, kind):
    figures = score(kind(tmp_path))
    assert faults(figures) == {} and figures["motion.magnitude"] > 0


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_films_are_scored(tmp_path, count):
    figures = score(write(tmp_path / "a.mkv", moving(count)))
    assert faults(figures) == {} and figures["health.sharpness"] > 0
    assert (figures["motion.magnitude"] is None) == (count == 1)
    assert score(write(tmp_path / "b.mkv", moving(1) * 2))["health.frozen_frames"] == 1


def blurred(clip, sigma):
    return [cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip]


def turning(clip, step):
    """More red and less blue from frame to frame."""
    return [levels(frame + np.array([step, 0, -step]) * number) for number, frame in enumerate(clip)]


def flickering(clip, size):
    return [levels(frame.astype(int) + size * (-1) ** number) for number, frame in enumerate(clip)]


def jerky(_, pixels):
    """Every second frame is some pixels ahead."""
    shifts = [np.float32([[1, 0, -SPEED * number - pixels * (number % 2)], [0, 1, 0]]) for number in range(16)]
    return [cv2.warpAffine(texture(), shift, (WIDTH, HEIGHT)).round().astype(np.uint8) for shift in shifts]


@pytest.mark.parametrize(
    ("name", "degrade", "strengths", "rises"),
    [
        ("health.blur", blurred, (0.8, 1.6, 3.2), True),
        ("health.sharpness", blurred, (0.8, 1.6, 3.2), False),
        ("health.noise", with_noise, (2, 6, 12), True),
        ("health.saturation_slope", turning, (0.3, 0.6, 1), True),
        ("health.colour_range", turning, (0.3, 0.6, 1), True),
        ("flicker.temporal", flickering, (4, 10, 20), False),
        ("flicker.warping_error", with_noise, (2, 6, 12), True),
        ("motion.smoothness", jerky, (0, 0.5, 1.5), False),
    ],
)
def test_a_figure_is_monotone_in_the_strength(tmp_path, name, degrade, strengths, rises):
    values = [
        score(write(tmp_path / "a.mkv", degrade(moving(16), s)), "--scores", name.split(".")[0])[name] for s in strengths
    ]
    assert values == sorted(values, reverse=not rises) and len(set(values)) == len(values)


def test_brightness_over_time_has_the_slope_that_was_added(tmp_path):
    still = [levels(texture()[:, :WIDTH] * 0.5 + 40 + n) for n in range(20)]
    figures = score(write(tmp_path / "a.mkv", still))
    assert figures["health.luma_slope"] == pytest.approx(FPS, rel=1e-3)  # a level per frame
    assert figures["health.luma_range"] == pytest.approx(19, abs=0.1)
    assert figures["flicker.brightness"] == pytest.approx(0, abs=0.02)  # a fade is no flicker


@pytest.mark.parametrize("amplitude", [1, 5])
def test_flicker_has_the_amplitude_that_was_added(tmp_path, amplitude):
    still = levels(texture()[:, :WIDTH] * 0.5 + 40).astype(int)
    figures = score(
        write(tmp_path / "a.mkv", [levels(still + amplitude * (-1) ** n) for n in range(12)]), "--scores", "flicker"
    )
    assert figures["flicker.brightness"] == pytest.approx(amplitude, rel=1e-3)
    assert figures["flicker.temporal"] == pytest.approx(1 - 2 * amplitude / 255, abs=1e-5)


def test_temporal_flickering_is_that_of_vbench(tmp_path):
    """Its formula: (255 - mean over steps of the mean absolute difference) / 255."""
    clip = moving(12)
    steps = [np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() for a, b in zip(clip, clip[1:])]
    figures = score(write(tmp_path / "a.mkv", clip), "--scores", "flicker")
    assert figures["flicker.temporal"] == pytest.approx((255 - np.mean(steps)) / 255, abs=1e-6)


def test_the_warping_error_takes_the_flow_of_the_source(tmp_path):
    """Noise on a still source: the flow is 0, so that the error is twice the variance in each of three channels."""
    still = [levels(texture()[:, :WIDTH] * 0.5 + 60)] * 12
    source = write(tmp_path / "source.mkv", still)
    film = write(tmp_path / "a.mkv", with_noise(still, 8))
    fields = score(film, "--source", source, "--scores", "flicker", details=True)
    assert fields["flow"] == "source"
    assert fields["figures"]["flicker.warping_error"] == pytest.approx(3 * 2 * (8**2 + 1 / 12) / 255**2, rel=0.02)
    assert score(film, "--source", source, "--no-aligned", "--scores", "flicker", details=True)["flow"] == "film"
    shorter = write(tmp_path / "shorter.mkv", still[:9])
    assert score(film, "--source", shorter, "--scores", "flicker", details=True)["flow"] == "film"


def test_noise_is_immerkaers_estimate(tmp_path):
    frame = with_noise(moving(1), 7)[0]
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(float)
    kernel = np.outer([1, -2, 1], [1, -2, 1])
    windows = np.lib.stride_tricks.sliding_window_view(gray, (3, 3))
    total = np.abs((windows * kernel).sum(axis=(2, 3))).sum()
    expected = np.sqrt(np.pi / 2) * total / (6 * (WIDTH - 2) * (HEIGHT - 2))
    figures = score(write(tmp_path / "a.mkv", [frame]), "--scores", "health")
    assert figures["health.noise"] == pytest.approx(expected, rel=1e-4)
    assert figures["health.sharpness"] == pytest.approx(cv2.Laplacian(gray, cv2.CV_64F).var(), rel=1e-4)


def metadata(frames, filters) -> list[dict[str, float]]:
    """What filters of the program ffmpeg write of each frame's luma."""
    gray = b"".join(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).tobytes() for frame in frames)
    height, width = frames[0].shape[:2]
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", FPS, "-i", "-"]
    said = zoo.ffmpeg(*raw, "-vf", f"{filters},metadata=print:file=-", "-f", "null", "-", input=gray).decode()
    blocks = said.split("frame:")[1:]
    return [{name: float(value) for name, value in re.findall(r"lavfi\.(\S+)=(\S+)", block)} for block in blocks]


def real_frames(count, name="car-turn.mp4") -> list[np.ndarray]:
    return [frame for frame in zoo.rgb_by_ffmpeg(zoo.real_clip(name), (480, 480))[:count].astype(np.uint8)]


@pytest.mark.parametrize("clip", [lambda: moving(10), lambda: real_frames(10)], ids=["drawn", "real"])
def test_blur_and_blocks_are_those_of_ffmpeg(tmp_path, clip):
    frames = clip()
    found = [metadata([frames[place]], "blurdetect,blockdetect")[0] for place in (0, 8, 9)]
    figures = score(write(tmp_path / "a.mkv", frames), "--scores", "health")
    assert figures["health.blur"] == pytest.approx(np.mean([one["blur"] for one in found]), rel=1e-4)
    assert figures["health.blockiness"] == pytest.approx(np.mean([one["block"] for one in found]), rel=1e-4)


def test_freezes_and_cuts_are_those_of_ffmpeg(tmp_path):
    frames = real_frames(60)
    frames[20:40] = [frames[20]] * 20
    frames[50:] = real_frames(10, "boxer.mp4")
    found = metadata(frames, "freezedetect=d=0.5,scdet")
    starts = [one["freezedetect.freeze_start"] for one in found if "freezedetect.freeze_start" in one]
    cuts = [number for number, one in enumerate(found) if one.get("scd.score", 0) >= 10]
    figures = score(write(tmp_path / "a.mkv", frames))
    assert starts == [pytest.approx(figures["health.frozen_at"], abs=1e-3)]
    assert faults(figures) == {"health.frozen_frames": 19, "motion.cuts": len(cuts)} and cuts == [40, 50]


@pytest.mark.parametrize("name", ["car-turn.mp4", "boxer.mp4"])
def test_likeness_to_a_reference_is_that_of_ffmpeg(tmp_path, name):
    reference = zoo.real_clip(name)
    film = tmp_path / "film.mp4"
    zoo.ffmpeg("-i", reference, "-frames:v", 12, "-c:v", "libx264", "-crf", 38, film)
    expected = {}
    for filters, pattern in (("psnr", r"average:(\S+)"), ("ssim", r"All:(\S+)"), ("libvmaf", r"VMAF score: (\S+)")):
        log = zoo.ffmpeg_log("-i", film, "-i", reference, "-lavfi", f"[0:v][1:v]{filters}=shortest=1", "-f", "null", "-")
        expected[filters] = float(re.findall(pattern, log)[-1])
    figures = score(film, "--reference", reference, "--scores", "reference")
    assert figures["reference.psnr"] == pytest.approx(expected["psnr"], abs=1e-3)
    assert figures["reference.ssim"] == pytest.approx(expected["ssim"], abs=1e-5)
    assert figures["reference.vmaf"] == pytest.approx(expected["libvmaf"], abs=0.01)
    assert figures["reference.frames"] == 12
    itself = score(film, "--reference", film, "--scores", "reference")
    assert (itself["reference.psnr"], itself["reference.ssim"]) == (100, 1)


def seam_figures(folder, frames, *seams) -> dict:
    options = [word for seam in seams for word in ("--seams", seam)]
    return score(write(folder / "a.mkv", frames), *options)


def test_a_seam_without_fault_is_like_its_surroundings(tmp_path):
    figures = seam_figures(tmp_path, moving(), 20)
    assert figures["seams.count"] == 1 and figures["seams.stall_frames"] == 0
    assert figures["seams.pixels_ratio"] == pytest.approx(1, abs=0.1)
    assert figures["seams.motion_ratio"] == pytest.approx(1, abs=0.1) and figures["seams.colour"] < 1


@pytest.mark.parametrize("stall", [2, 6, 12])
def test_a_stall_at_a_seam_has_its_length(tmp_path, stall):
    clip = moving()
    figures = seam_figures(tmp_path, [*clip[:20], *[clip[19]] * stall, *clip[20:]], 20)
    assert figures["seams.stall_frames"] == stall
    assert figures["seams.motion_ratio"] == pytest.approx(max(0, (8 - stall + 1) / 8), abs=0.1)


def test_a_slower_part_has_the_ratio_of_the_speeds(tmp_path):
    clip = moving(speed=1)
    figures = seam_figures(tmp_path, [*clip[:20:2], *clip[20:]], 10)
    assert figures["seams.motion_ratio"] == pytest.approx(0.5, abs=0.05) and figures["seams.stall_frames"] == 0


def test_a_jump_of_colour_at_a_seam_is_found_there(tmp_path):
    clip = moving()
    jumped = [*clip[:20], *(levels(frame + np.array([12, 0, -12])) for frame in clip[20:])]
    fields = score(write(tmp_path / "a.mkv", jumped), "--seams", 10, "--seams", 20, details=True)
    first, second = fields["details"]["seams"]
    before, after = (cv2.cvtColor(jumped[n].astype(np.float32) / 255, cv2.COLOR_RGB2Lab).mean((0, 1)) for n in (19, 20))
    assert second["colour"] == pytest.approx(np.linalg.norm(after - before), rel=0.02) and second["colour"] > 5
    assert first["colour"] < 1 and second["pixels_ratio"] > first["pixels_ratio"]
    assert fields["figures"]["seams.colour"] == second["colour"]


def test_a_seam_beyond_the_film_is_refused(tmp_path):
    film = write(tmp_path / "a.mkv", moving(8))
    stderr = stage("score", film, "-o", tmp_path / "a.json", "--seams", 4, "--seams", 8, fails=1)
    assert "seam 8 lies beyond the film, which has 8 frames: leave it out" in stderr


def test_a_cut_is_no_seam(tmp_path):
    figures = seam_figures(tmp_path, [*moving(20), *(frame // 3 for frame in moving(20, seed=5))], 30)
    assert figures["motion.cuts"] == 1 and figures["seams.colour"] < 1
    assert figures["seams.motion_ratio"] == pytest.approx(1, abs=0.1)


def test_drift_has_the_slopes_that_were_added(tmp_path):
    still = texture()[:, :WIDTH] * 0.5 + 40
    source = write(tmp_path / "source.mkv", [levels(still)] * 4)
    parts = [levels(still + 3 * part) for part in range(5) for _ in range(4)]
    places = [word for place in (4, 8, 12, 16) for word in ("--seams", place)]
    fields = score(write(tmp_path / "a.mkv", parts), "--source", source, *places, details=True)
    figures = fields["figures"]
    assert figures["drift.luma_slope"] == pytest.approx(3, abs=0.01)
    assert figures["drift.contrast_slope"] == pytest.approx(0, abs=1e-3) == figures["drift.sharpness_slope"]
    assert figures["drift.source_colour"] == pytest.approx(figures["drift.colour"], rel=1e-3) and figures["drift.colour"] > 4
    assert figures["drift.source_sharpness"] == pytest.approx(1, abs=0.01)
    assert len(fields["details"]["drift"]) == 5 and fields["details"]["drift"][0]["colour"] == 0
    softer = [cv2.GaussianBlur(levels(still), (0, 0), 0.4 + 0.4 * part) for part in range(3) for _ in range(4)]
    assert seam_figures(tmp_path, softer, 4, 8)["drift.sharpness_slope"] < -0.1


def test_a_file_that_cannot_be_scored_is_one_sentence(tmp_path):
    for film in (zoo.sound_only(tmp_path), zoo.no_index(tmp_path)):
        stderr = stage("score", film, "-o", tmp_path / "a.scores.json", fails=1)
        assert f"error: {film}" in stderr and "Traceback" not in stderr
    stderr = stage("score", zoo.plain(tmp_path), "--reference", zoo.sound_only(tmp_path), "-o", tmp_path / "a.json", fails=1)
    assert "has no video stream" in stderr and not (tmp_path / "a.json").exists()
