"""How long does the device wait for the CPU while a clip is decoded? A sleeping decoder stands for the device.

The decoder sleeps for every chunk of 4 frames and hands them over, as they come from a GPU: real pixels of 1280x720,
interleaved, in main memory. `write_clip` writes them as decode does, as H.264 and FFV1 with statistics. What the decoder
waits between the end of a chunk and the start of the next one is in the way of the device: its median over the chunks, in
milliseconds per frame. The peer is the same with the frames made and written one after the other. The limit is 0. A decoder
faster than the encoders waits for them whatever is done: both are shown, with the CPU milliseconds of this process.

    python -m benchmarks.decode [--quick] [--json FILE]
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import cv2
import numpy as np

from benchmarks.harness import alternate, finish, median, parse_arguments, print_table
from stages.families.shared import write_clip as room
from stages.media.options import WriteOptions
from tests.records import fields

WIDTH, HEIGHT, CHUNK = 1280, 720, 4
SECONDS = 0.15  # of the device per frame: longer than two cores encode one
GOAL = 2.0  # ms per frame


class SleepingDecoder:
    """Frames uint8 [H, W, 3] after pauses, in chunks. `waits` are the seconds between the chunks, without the first."""

    def __init__(self, chunks: int):
        self.chunks, self.waits = chunks, []
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        scene = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        self.images = [np.roll(scene, number, axis=1) for number in range(CHUNK)]

    def frames(self) -> Generator[np.ndarray, None, None]:
        ready = None
        for _ in range(self.chunks):
            if ready is not None:
                self.waits.append(time.perf_counter() - ready)
            time.sleep(SECONDS * CHUNK)
            ready = time.perf_counter()
            yield from self.images


def run_once(chunks: int, overlaps: bool) -> dict:
    """Milliseconds per frame: that the decoder waited, in the median of the chunks; of the CPU; of the whole."""
    decoder = SleepingDecoder(chunks)
    options = WriteOptions.resolved({"fps": 24.0, "lossless": True})
    with tempfile.TemporaryDirectory() as folder:
        work = SimpleNamespace(options=options, output=Path(folder) / "clip.json")
        described = fields("clip", width=WIDTH, height=HEIGHT, num_frames=chunks * CHUNK)
        described = {name: value for name, value in described.items() if name not in ("fps", "statistics")}
        before, start = cpu(), time.perf_counter()
        with nullcontext() if overlaps else patch.object(room, "ahead", lambda frames, count: nullcontext(frames)):
            room.write_clip(work, decoder.frames(), described)
        seconds, busy = time.perf_counter() - start, cpu() - before
    per_frame = 1000 / (chunks * CHUNK)
    waited = 1000 * statistics.median(decoder.waits) / CHUNK
    return {"waited": waited, "cpu": per_frame * busy, "beyond": per_frame * seconds - 1000 * SECONDS}


def cpu() -> float:
    """CPU seconds of this process so far, without its children."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    chunks, repeats = (5, 2) if options.quick else (12, 5)
    ways = {"ahead": True, "one after the other": False}
    results = alternate({name: lambda way=way: run_once(chunks, way) for name, way in ways.items()}, repeats)
    names = {"waited": "the device waits", "beyond": "whole run beyond the device", "cpu": "CPU of the process"}
    rows = [[name, *(median(runs, key) for key in names)] for name, runs in results.items()]
    print_table(["ms per frame of 1280x720", *names.values()], rows)
    waited = {name: median(runs, "waited") for name, runs in results.items()}
    print(f"one after the other the device waits {waited['one after the other']:.1f} ms per frame")
    finish(f"decode: {waited['ahead']:.2f} (goal <= {GOAL:.0f})", {"results": results}, options.json)


if __name__ == "__main__":
    main()
