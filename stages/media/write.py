"""Writing of images by Pillow, and of videos frame by frame by the ffmpeg program."""

import errno
import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self, cast

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from PIL import Image

from stages.media.marks import Marks
from stages.media.probe import SAFE_INPUT, local_url
from stages.media.sound import Sound
from stages.runtime.artifacts import member_path
from stages.runtime.errors import ItemError, JobError, UsageError, one_line
from stages.runtime.faults import job_fault

# Converted to BT.709 and tagged as such: players guess the matrix of untagged video by its size, often wrongly. Chroma is
# sampled at the left, the default of H.264 decoders.
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:out_chroma_loc=left"
    ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact,"
    "format=yuv420p,setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
GROWING = {"movflags": "+frag_every_frame+empty_moov+default_base_moof", "tune": "zerolatency", "flush_packets": 1}
TICK = Fraction(1, 90_000)  # seconds: frame times are rounded to multiples of it
VARYING = {"enc_time_base": "demux", "video_track_timescale": TICK.denominator}
FULL = {256 - errno.ENOSPC, 256 - errno.EDQUOT}  # exit codes of the ffmpeg program
ANY_DAMAGE = ("-max_error_rate", "1")  # of sound: undecodable parts become silence
X264_THREADS = 4  # fixed: x264's output depends on it


class VideoWriter:
    """Write RGB frames to a video file, in constant memory; the same frames give the same bytes.

    - `codec`: "h264" (mp4, yuv420p, BT.709 in limited range; both sides even) or "lossless" (FFV1 in Matroska, which keeps
      the exact RGB values, for further processing).
    - `fps`: frames per second, an int, a Fraction or a float.
    - `crf`: x264's quality, 0 to 51, lower is better.
    - `growing`: the mp4 can be read while it is written, except its last frame; it is larger.
    - `times`: seconds at which each frame is shown, ascending, for a variable frame rate.
    - `sound`: is encoded as AAC, from the start of the video.
    - `marks`: what the mp4 says of itself.

        with VideoWriter(path, 1280, 704, 24) as video:
            video.write(rgb)

    An exception inside the block stops the ffmpeg program; the file at `path` is not a video then. Raises UsageError for
    sizes and rates that cannot be written, ItemError for frames of another shape and for errors of ffmpeg, JobError for a
    full disk or a folder that cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        width: int,
        height: int,
        fps: Fraction | float,
        *,
        codec: str = "h264",
        crf: int = 17,
        growing: bool = False,
        times: Sequence[float] | None = None,
        sound: Sound | None = None,
        marks: Marks | None = None,
    ):
        self.path, self.frames, self._shape = Path(path), 0, (height, width, 3)
        self._marks = marks
        rate = Fraction(fps).limit_denominator(1001)
        if rate <= 0:
            raise UsageError(f"{fps} frames per second cannot be written", "give a rate above 0")
        if codec == "h264" and (width % 2 or height % 2):
            raise UsageError(f"H.264 needs even sides, not {width}x{height}", "choose an even width and height")
        raw = {"format": "rawvideo", "pix_fmt": "rgb24", "video_size": (width, height), "framerate": rate}
        self._sound_remedy = f", or leave out the sound of {sound.path} (--no-keep-audio)" if sound else ""
        streams = [ffmpeg.input("pipe:", threads=1, **({"format": "nut"} if times else raw)).video]
        if sound:
            streams.append(_audio(sound))
        options = _encoding(codec, crf) | (GROWING if growing else {}) | (VARYING if times else {})
        if marks:
            tags = [f"{name}={value}" for name, value in marks.tags().items()]
            options |= {f"metadata:g:{number}": tag for number, tag in enumerate(tags)}
        output = ffmpeg.output(*streams, local_url(self.path), **options)
        command = output.global_args("-nostdin", "-nostats", "-copyts", "-loglevel", "error", *ANY_DAMAGE).overwrite_output()
        self._stderr = tempfile.TemporaryFile()
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe()),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._timed = TimedFrames(self._stdin, width, height, times) if times else None

    def write(self, rgb: np.ndarray) -> None:
        """Append one frame, uint8 [H, W, 3]."""
        if rgb.shape != self._shape or rgb.dtype != np.uint8:
            raise ItemError(
                f"frame {self.frames} for {self.path} is {rgb.dtype} {list(rgb.shape)}, not uint8 {list(self._shape)}",
                "give every frame the size of the video",
            )
        try:
            if self._timed:
                self._timed.write(rgb)
            else:
                self._stdin.write(np.ascontiguousarray(rgb).data)
        except BrokenPipeError:
            self._process.wait()
            raise self._failure() from None
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                if not self.frames:
                    raise ItemError(f"{self.path} would have no frames", "write at least one")
                self._finish()
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._stderr.close()

    def _finish(self) -> None:
        """Close the stream and wait until the file is complete. Raises ItemError or JobError if ffmpeg fails."""
        with suppress(BrokenPipeError):
            if self._timed:
                self._timed.close()
            self._stdin.close()
        if self._process.wait() != 0:
            raise self._failure()
        if self._marks:
            with open(self.path, "ab") as file:
                file.write(self._marks.box())

    def _failure(self) -> ItemError | JobError:
        """ffmpeg's error, as an ItemError or, for a fault of the machine, as a JobError."""
        self._stderr.seek(0)
        said = re.sub(r"\[\S+ @ 0x[0-9a-f]+\] ", "", self._stderr.read().decode("utf-8", "replace"))
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
        reason = f"ffmpeg could not write {self.path} (exit code {self._process.returncode}): {' / '.join(lines[-3:])}"
        code = self._process.returncode
        if code < 0:
            return JobError(reason, "run again; if it was ended for lack of memory, give the job more")
        if code in FULL or "No space left on device" in said or "Disk quota exceeded" in said:
            return JobError(f"the disk is full: {reason}", "free disk space and run again")
        if any(phrase in said for phrase in ("Permission denied", "No such file or directory", "Read-only file system")):
            return JobError(reason, "check that the folder exists and can be written")
        return ItemError(reason, "check the frames and the options of the video" + self._sound_remedy)


class TimedFrames:
    """RGB frames and the time of each, in seconds, as a stream of raw video in NUT."""

    def __init__(self, file: IO[bytes], width: int, height: int, times: Sequence[float]):
        self._times = iter(times)
        self._container = av.open(file, "w", format="nut")
        # NUT does not store how long the last frame is shown: ffmpeg derives it from the rate.
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        rate = Fraction(1 / usual).limit_denominator(1001) if usual > 0 else 25
        self._stream: Any = self._container.add_stream("rawvideo", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "rgb24"
        self._stream.time_base = self._stream.codec_context.time_base = TICK

    def write(self, rgb: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts, frame.time_base = round(next(self._times) / TICK), TICK
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the rest of the stream."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _audio(sound: Sound) -> Any:
    """A sound as an input of ffmpeg, trimmed to its start and end.

    It is decoded from the start of the file, since seeking loses the sound of some files.
    """
    source = ffmpeg.input(local_url(sound.path), vn=None, **SAFE_INPUT)[f"a:{sound.track}"]
    trimmed = source.filter("asetpts", f"PTS-({sound.start:.6f})/TB").filter("atrim", start=0, end=f"{sound.seconds:.6f}")
    if sound.pan:
        trimmed = trimmed.filter("pan", sound.pan)
    return trimmed.filter("aresample", **{"async": 1, "first_pts": 0})  # silence before a late start and in gaps


def _encoding(codec: str, crf: int) -> dict[str, Any]:
    """Options of the ffmpeg program for a reproducible output. Raises UsageError for an unknown codec and a wrong crf."""
    common: dict[str, Any] = {"fps_mode": "passthrough", "map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact"}
    if codec == "lossless":
        video = {"format": "matroska", "c:v": "ffv1", "level": 3, "g": 1, "slices": 4, "threads": 4, "pix_fmt": "gbrp"}
        return common | video
    if codec != "h264":
        raise UsageError(f"unknown codec {codec!r}", "use h264 or lossless")
    if not 0 <= crf <= 51:
        raise UsageError(f"crf {crf} is out of range", "set 0 (best) to 51")
    x264 = {"c:v": "libx264", "preset": "medium", "crf": crf, "threads": X264_THREADS}
    audio = {"c:a": "aac", "b:a": "192k", "flags:a": "+bitexact"}
    return common | {"format": "mp4", "movflags": "+faststart", "vf": BT709} | x264 | audio


def write_png(path: Path | str, rgb: np.ndarray) -> None:
    """Write an RGB image, uint8 [H, W, 3], as PNG; the same image gives the same bytes.

    Raises ItemError for an array of another form, JobError if the file cannot be written.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ItemError(f"the image for {path} is {rgb.dtype} {list(rgb.shape)}", "give uint8 [height, width, 3]")
    try:
        Image.fromarray(rgb).save(path, format="PNG", compress_level=4)
    except OSError as error:
        raise _write_error(path, error) from error


def write_member(output: Path, suffix: str, rgb: np.ndarray) -> None:
    """Write an RGB image, uint8 [H, W, 3], as the member `suffix` of an artifact with a folder of images."""
    path = member_path(output, suffix)
    path.parent.mkdir(exist_ok=True)
    write_png(path, rgb)


def write_gif(path: Path | str, frames: list[np.ndarray], fps: Fraction) -> None:
    """Write RGB frames, uint8 [H, W, 3], as an endless GIF, whose times are hundredths of a second."""
    images = [Image.fromarray(rgb) for rgb in frames]
    ticks = [round(100 * number / fps) for number in range(len(frames) + 1)]  # 8 per second: 12 and 13 in turn
    durations = [10 * (after - before) for before, after in pairwise(ticks)]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path | str, error: OSError) -> JobError:
    fault = job_fault(error) or one_line(error)
    return JobError(f"{path} could not be written: {fault}", "free disk space, or check the folder, and run again")
