"""A zoo of videos, each odd in one way, made by ffmpeg, and frames decoded by ffmpeg as the truth.

Each function that makes a video takes a folder and returns the path of a new file in it.
"""

import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

MEDIA = Path(os.environ.get("KINEMAKE_MEDIA", Path(__file__).parents[1].parent / "shared" / "media"))

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)

WIDTH, HEIGHT, FPS, FRAMES = 128, 96, 16, 33


def ffmpeg(*arguments, **options) -> bytes:
    """Run the program ffmpeg and return its standard output."""
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(program, check=True, stdout=subprocess.PIPE, **options).stdout


def ffmpeg_log(*arguments) -> str:
    """Run the program ffmpeg and return what it says."""
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *map(str, arguments)]
    return subprocess.run(program, check=True, stderr=subprocess.PIPE, text=True).stderr


def real_clip(name: str) -> Path:
    """A real clip by file name. Skips the test if the folder of real media is absent."""
    path = MEDIA / "videos" / name
    if not path.exists():
        pytest.skip(f"no real media at {MEDIA} (set KINEMAKE_MEDIA)")
    return path


def plain(folder, name="plain.mp4", *, frames=FRAMES, size=(WIDTH, HEIGHT), fps=FPS, scene="", encoder=(), sound=0):
    """H.264 4:2:0 with B-frames and `sound` seconds of a tone. `scene` adds filters, `encoder` adds output options."""
    path = Path(folder) / name
    source = f"testsrc2=size={size[0]}x{size[1]}:rate={fps},trim=end_frame={frames}{scene and ',' + scene}"
    sound_options = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={sound}", "-c:a", "aac"] if sound else []
    encoding = ["-c:v", "libx264", "-preset", "fast", "-bf", "2", "-g", "12", "-pix_fmt", "yuv420p", *encoder]
    ffmpeg("-f", "lavfi", "-i", source, *sound_options, *encoding, "file:" + str(path))
    return path


def varying_rate(folder):
    """After each fifth frame the image stands still for two more frame times."""
    options = ["-fps_mode", "passthrough", "-video_track_timescale", "16000"]
    return plain(folder, "vfr.mp4", scene=f"setpts=(N+2*floor(N/5))/{FPS}/TB", encoder=options)


def rotated(folder, degrees):
    """A display matrix, as phones write it, that turns the image `degrees` counterclockwise."""
    upright, path = plain(folder), Path(folder) / f"rotated{degrees}.mp4"
    ffmpeg("-display_rotation", degrees, "-i", upright, "-c", "copy", path)
    return path


def anamorphic(folder):
    """Pixels one and a half times as wide as high."""
    return plain(folder, "anamorphic.mp4", scene="setsar=3/2")


def ten_bit(folder):
    return plain(folder, "10bit.mp4", encoder=["-pix_fmt", "yuv420p10le"])


def hdr(folder):
    """PQ, BT.2020, 10 bits."""
    tags = "setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    return plain(folder, "hdr.mp4", scene=f"format=yuv420p10le,{tags}", encoder=["-pix_fmt", "yuv420p10le"])


def odd_size(folder):
    return plain(folder, "odd.mkv", scene="scale=125:93,setsar=1", encoder=["-c:v", "ffv1"])


def with_sound(folder, seconds=3.0):
    return plain(folder, "sound.mp4", sound=seconds)


def sound_only(folder):
    path = Path(folder) / "sound_only.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path)
    return path


def no_frames(folder):
    """A video track without a single frame."""
    path = Path(folder) / "no_frames.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=128x96:rate=16:duration=1", "-c:v", "libx264", "-frames:v", 0, path)
    return path


def truncate(path, share=0.7):
    """The first part of a file, like a broken download."""
    truncated_path = path.with_name("cut_" + path.name)
    truncated_path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return truncated_path


def no_index(folder):
    """An mp4 that lacks the index at its end."""
    return truncate(plain(folder))


def truncated(folder):
    return truncate(plain(folder, "front.mp4", encoder=["-movflags", "+faststart"]))


def truncated_fragments(folder):
    return truncate(plain(folder, "fragments.mp4", encoder=["-movflags", "+frag_keyframe+empty_moov"]))


def truncated_matroska(folder):
    return truncate(plain(folder, "plain.mkv"))


def playlist(folder):
    """A playlist with the name of a video, which refers to another file."""
    target, path = plain(folder, "secret.mp4"), Path(folder) / "playlist.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {target}\n")
    return path


H264 = ["-c:v", "libx264", "-preset", "fast", "-bf", "2", "-g", "12", "-pix_fmt", "yuv420p"]
MPEG2 = ["-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-q:v", "2"]
CORNERS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


def numbered_image(number, size=(WIDTH, HEIGHT)) -> np.ndarray:
    """A grey image, uint8 [H, W, 3], with its number and coloured corners: red, green, blue and yellow, row by row.

    The number is a row of eight cells across the middle, white for ones, the most significant bit on the left.
    """
    width, height = size
    side, image = height // 4, np.full((height, width, 3), 90, np.uint8)
    image[:side, :side], image[:side, -side:] = CORNERS["red"], CORNERS["green"]
    image[-side:, :side], image[-side:, -side:] = CORNERS["blue"], CORNERS["yellow"]
    for cell in range(8):
        columns = slice(cell * width // 8, (cell + 1) * width // 8)
        image[height // 2 - side // 2 : height // 2 + side // 2, columns] = 255 * (number >> (7 - cell) & 1)
    return image


def read_number(rgb) -> int:
    """The number in a numbered image."""
    height, width = rgb.shape[:2]
    cells = [rgb[height // 2, int((cell + 0.5) * width / 8)].mean() > 128 for cell in range(8)]
    return sum(int(white) << (7 - cell) for cell, white in enumerate(cells))


def numbered_video(folder, name, encoder=H264, *, frames=48, fps=12, size=(WIDTH, HEIGHT)):
    """A video of numbered images."""
    return encode_images(folder, name, [numbered_image(n, size) for n in range(frames)], encoder, fps=fps)


def encode_images(folder, name, images, encoder, *, fps=12):
    """A video of images, uint8 [H, W, 3 or 4]."""
    path = Path(folder) / name
    height, width, channels = images[0].shape
    stored = ["-f", "rawvideo", "-pix_fmt", "rgba" if channels == 4 else "rgb24", "-s", f"{width}x{height}", "-r", fps]
    ffmpeg(*stored, "-i", "-", *encoder, path, input=b"".join(image.tobytes() for image in images))
    return path


def rgb_by_ffmpeg(path, size=(WIDTH, HEIGHT), filters="null") -> np.ndarray:
    """All frames of a video as the program ffmpeg shows them with its fast conversion, uint8 [N, H, W, 3]."""
    raw = ffmpeg(
        "-i", "file:" + str(path), "-fps_mode", "passthrough", "-vf", f"{filters},format=rgb24", "-f", "rawvideo", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def rgb_by_formula(path, size=(WIDTH, HEIGHT), weights=BT601, bits=8, full_range=False) -> np.ndarray:
    """The stored frames of a 4:2:0 video by the formula of ITU-R BT.601/709, float64 [N, H, W, 3] on 0 to 255.

    `weights` are those of red and blue in the luma. Chroma is interpolated linearly; its samples lie on the left of a
    pair of columns and between the two rows.
    """
    (width, height), (kr, kb) = size, weights
    raw = ffmpeg("-noautorotate", "-i", "file:" + str(path), "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    half = (height + 1) // 2, (width + 1) // 2
    luma, chroma = width * height, half[0] * half[1]
    samples = np.frombuffer(raw, np.uint8 if bits == 8 else np.uint16).reshape(-1, luma + 2 * chroma)
    y, u, v = np.split(samples / 2.0 ** (bits - 8), [luma, luma + chroma], axis=1)
    rows, columns = (np.arange(height) + 0.5) / 2 - 0.5, np.arange(width) / 2
    black, luma_range, chroma_range = (0, 255, 255) if full_range else (16, 219, 224)
    y = (y.reshape(-1, height, width) - black) * (255 / luma_range)
    u, v = ((_between(_between(c.reshape(-1, *half), rows, 1), columns, 2) - 128) * (255 / chroma_range) for c in (u, v))
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.stack([red, green, blue], axis=-1).clip(0, 255)


def _between(samples, positions, axis):
    positions = positions.clip(0, samples.shape[axis] - 1)
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, samples.shape[axis] - 1)
    shape = [1] * samples.ndim
    shape[axis] = -1
    share = (positions - low).reshape(shape)
    return samples.take(low, axis) * (1 - share) + samples.take(high, axis) * share
