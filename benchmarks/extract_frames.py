"""Reading frames of a 720p H.264 video: ours against decord, PyAV and OpenCV, and our memory as clips grow.

Each reader opens a 10 s clip and yields all its frames as RGB arrays, one at a time, on two threads, in a fresh process that
has imported its library. The ratio is the CPU seconds of the fastest peer over ours, by medians of alternating runs. CPU
seconds are used because machines are shared. Ours runs with two threads and with its default number, and the slower one
counts. Memory is the peak resident set of a process that reads all frames of 10 s and of 120 s.

A second table has the parts of our reading, and the access pattern of the captioner: nine frames of a clip by random access,
also by decord, whose frames must equal ours.
"""

import importlib
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from benchmarks.harness import alternate, finish, in_fresh_process, median, parse_arguments, print_table

GOAL, MEMORY_GOAL = 0.95, 1.10
THREADS = 2
FPS = 24


def main():
    options = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        short, long = make_clip(folder, 10), make_clip(folder, 120)
        runs = {
            name: lambda name=name: in_fresh_process("benchmarks.extract_frames", "measure", name, short) for name in READERS
        }
        results = alternate(runs, 3 if options.quick else 9)
        runs = {
            name: lambda name=name: in_fresh_process("benchmarks.extract_frames", "measure_part", name, short)
            for name in PARTS
        }
        parts = alternate(runs, 3 if options.quick else 9)
        peaks = {
            seconds: [
                in_fresh_process("benchmarks.extract_frames", "measure", "ours", clip)["peak_mb"]
                for _ in range(1 if options.quick else 3)
            ]
            for seconds, clip in ((10, short), (120, long))
        }
    check_same_frames(results)
    check_same_samples(parts)
    print_table(
        ["reader", "CPU s", "wall s", "frames/CPU s", "peak MB"],
        [
            [name, cpu := median(r, "cpu_s"), median(r, "wall_s"), r[0]["frames"] / cpu, median(r, "peak_mb")]
            for name, r in results.items()
        ],
    )
    print_table(
        ["part", "CPU ms", "wall ms"],
        [[name, 1000 * median(r, "cpu_s"), 1000 * median(r, "wall_s")] for name, r in parts.items()],
    )
    print(f"ours, peak MB: {peaks[10]} for 10 s, {peaks[120]} for 120 s")
    best = min(median(results[name], "cpu_s") for name in PEERS)
    ratio = best / max(median(results[name], "cpu_s") for name in ("ours", "ours, default threads"))
    memory = max(peaks[120]) / min(peaks[10])
    finish(
        f"extract_frames: {ratio:.2f} (goal >= {GOAL}), memory 120 s / 10 s: {memory:.2f} (goal <= {MEMORY_GOAL:.2f})",
        {"results": results, "parts": parts, "peak_mb": peaks, "ratio": ratio, "memory_ratio": memory, "threads": THREADS},
        options.json,
    )


def make_clip(folder: str, seconds: int) -> str:
    """A 720p H.264 clip with moving shapes and some film grain."""
    path = f"{folder}/{seconds}s.mp4"
    scene = f"testsrc2=size=1280x720:rate={FPS}:duration={seconds},noise=alls=6:allf=t,format=yuv420p"
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "48"]
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-f", "lavfi", "-i", scene, *encoder, path]
    subprocess.run(program, check=True)
    return path


def measure(reader: str, path: str) -> dict:
    """Read all frames of a clip and access one pixel of each, so that none can be skipped."""
    library, read = READERS[reader]
    importlib.import_module(library)
    wall, cpu, count, checksum, last = time.perf_counter(), time.process_time(), 0, 0, None
    for rgb in read(path):
        count += 1
        checksum += int(rgb[360, 640, 0])
        last = rgb
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "frames": count,
        "checksum": checksum,
        "last_mean": np.mean(last, axis=(0, 1)).tolist(),
    }


def measure_part(name: str, path: str) -> dict:
    """Measure one part of reading a clip."""
    import av  # noqa: F401

    import stages.media.select  # noqa: F401

    if name.startswith("decord"):
        import decord  # noqa: F401
    wall, cpu = time.perf_counter(), time.process_time()
    images = PARTS[name](path)
    times = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return times | {"means": [float(rgb.mean()) for rgb in images or ()]}


def check_same_samples(parts: dict) -> None:
    """Check that both readers gave the same frames by random access, within the difference of their conversions."""
    ours, others = (parts[name][0]["means"] for name in ("sample: nine frames", "decord: nine frames"))
    if any(abs(a - b) > 3 for a, b in zip(ours, others, strict=True)):
        raise SystemExit(f"decord's frames are not ours: means of {others} and {ours}")


def check_same_frames(results: dict) -> None:
    """Check that all readers gave the same frames, red first, within the difference of their conversions."""
    ours = results["ours"][0]
    for name, (result, *_) in results.items():
        difference = max(abs(a - b) for a, b in zip(ours["last_mean"], result["last_mean"], strict=True))
        if result["frames"] != ours["frames"] or difference > 3:
            raise SystemExit(f"{name} read {result['frames']} frames, {difference:.1f} levels from ours: not comparable")


def read_ours(path, accurate=False, threads=THREADS):
    from stages.media.read import frames

    for frame in frames(Path(path), accurate=accurate, threads=threads):
        yield frame.rgb


def read_pyav(path):
    import av

    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        container.streams.video[0].thread_count = THREADS
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def read_decord(path):
    import decord

    reader = decord.VideoReader(path, num_threads=THREADS)
    for _ in range(len(reader)):
        yield reader.next().asnumpy()


def read_opencv(path):
    import cv2

    cv2.setNumThreads(THREADS)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, THREADS])
    while True:
        good, bgr = capture.read()
        if not good:
            return
        yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


PEERS = {"decord": ("decord", read_decord), "PyAV": ("av", read_pyav), "OpenCV": ("cv2", read_opencv)}
READERS = {
    "ours": ("stages.media.read", read_ours),
    "ours, default threads": ("stages.media.read", lambda path: read_ours(path, threads=None)),
    "ours, accurate": ("stages.media.read", lambda path: read_ours(path, accurate=True)),
    **PEERS,
}


def open_only(path):
    from stages.media.probe import open_video

    with open_video(path):
        pass


def describe(path):
    from stages.media.probe import probe

    probe(path)


def find_times(path):
    from stages.media.probe import frame_times, probe

    frame_times(probe(path))


def seek_to_last(path):
    from stages.media.probe import open_video

    with open_video(path) as (container, stream):
        container.seek(stream.duration, stream=stream)
        next(container.decode(stream))


def decode_only(path):
    from stages.media.probe import decode_video, probe

    for _ in decode_video(probe(path), threads=THREADS):
        pass


def convert_one(path, accurate=False):
    """Convert the first frame of a clip as often as the clip has frames."""
    from stages.media.pixels import converter
    from stages.media.probe import decode_video, probe

    source = probe(path)
    to_rgb, (_, first) = converter(source, accurate), next(decode_video(source, threads=1))
    for _ in range(10 * FPS):
        to_rgb(first.frame)


def sample_ours(path):
    from stages.media.select import sample

    return [frame.rgb for frame in sample(path, 8, include_last=True)]


def sample_decord(path):
    import decord

    from stages.media.select import midpoint_indices

    reader = decord.VideoReader(path, num_threads=THREADS)
    return list(reader.get_batch([*midpoint_indices(np.arange(len(reader)), 8), len(reader) - 1]).asnumpy())


PARTS = {
    "open": open_only,
    "open, probe": describe,
    "open, probe, times of all": find_times,
    "open, seek, decode one": seek_to_last,
    "open, probe, decode all": decode_only,
    "probe, convert 240 times": convert_one,
    "the same, accurately": lambda path: convert_one(path, accurate=True),
    "sample: nine frames": sample_ours,
    "decord: nine frames": sample_decord,
}

if __name__ == "__main__":
    main()
