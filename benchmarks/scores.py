"""CPU time and memory of the scores that every film gets, per frame of 720p; ffmpeg's own decoding is the limit.

The time per frame is the difference of two lengths, so that the start of a process is not in it. Memory is that of the whole
process.

    python -m benchmarks.scores [--quick] [--json FILE]
"""

import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg

from benchmarks.harness import MEDIA, alternate, finish, in_fresh_process, parse_arguments, print_table

GOAL = 25  # milliseconds
GROUPS = ("health", "motion", "flicker", "seams", "drift")  # what needs no reference
SECONDS, QUICK_SECONDS = (10, 40), (4, 12)
REPEATS, QUICK_REPEATS = 5, 2
FPS = 24


def make_film(path: Path, seconds: int) -> None:
    """A film of 720p: a real clip again and again, or a test pattern where there are no real clips."""
    clip = MEDIA / "videos" / "clip-10s.mp4"
    source = ["-stream_loop", "-1", "-i", clip] if clip.exists() else ["-f", "lavfi", "-i", "testsrc2=size=1280x720"]
    scaling = f"scale=1280:720:flags=bicubic,setsar=1,fps={FPS}"
    encoding = ["-vf", scaling, "-t", seconds, "-an", "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", path]
    run_ffmpeg(*source, *encoding)


def run_ffmpeg(*arguments) -> None:
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    subprocess.run(program, check=True)


def measure(path: str, groups: list[str]) -> dict:
    """Score a film in this process. Returns CPU milliseconds, peak memory in MB and the number of frames."""
    from stages.media.probe import frame_times, probe
    from stages.media.scores.film import Film
    from stages.media.scores.worker import GROUPS as CLASSES
    from stages.media.scores.worker import steps

    video = probe(path)
    times = frame_times(video)
    film = Film(times, [("first", len(times) // 2), ("second", len(times) - len(times) // 2)])
    measured = [CLASSES[name](film) for name in groups]
    for look, step in steps(video):
        for group in measured:
            group.add(look, step)
    return {**spent(resource.RUSAGE_SELF), "frames": len(times), "figures": sum(len(one.figures()) for one in measured)}


def decode(path: str) -> dict:
    """Decode a film by the program ffmpeg to RGB that is thrown away."""
    run_ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "/dev/null")
    return spent(resource.RUSAGE_CHILDREN)


def spent(who: int) -> dict:
    usage = resource.getrusage(who)
    return {"ms": 1000 * (usage.ru_utime + usage.ru_stime), "mb": usage.ru_maxrss / 1024}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    seconds, repeats = (QUICK_SECONDS, QUICK_REPEATS) if options.quick else (SECONDS, REPEATS)
    sets = {"all": list(GROUPS), **{name: [name] for name in GROUPS}}
    with tempfile.TemporaryDirectory() as folder:
        films = [str(Path(folder, f"{length}.mp4")) for length in seconds]
        for film, length in zip(films, seconds, strict=True):
            make_film(Path(film), length)
        runs = {
            (name, film): lambda film=film, groups=groups: in_fresh_process("benchmarks.scores", "measure", film, groups)
            for name, groups in sets.items()
            for film in films
        }
        runs |= {("ffmpeg", film): lambda film=film: in_fresh_process("benchmarks.scores", "decode", film) for film in films}
        results = alternate(runs, repeats)
    frames = [results["all", film][0]["frames"] for film in films]
    rows, figures = [], {}
    for name in (*sets, "ffmpeg"):
        short, long = ([one["ms"] for one in results[name, film]] for film in films)
        per_frame = statistics.median(b - a for a, b in zip(short, long, strict=True)) / (frames[1] - frames[0])
        memory = [statistics.median(one["mb"] for one in results[name, film]) for film in films]
        figures[name] = {"ms_per_frame": per_frame, "mb": memory}
        rows.append([{"ffmpeg": "decoding by ffmpeg", "all": "all scores"}.get(name, name), per_frame, *map(round, memory)])
    print_table(["", "CPU ms per frame", *(f"MB at {count} frames" for count in frames)], rows)
    finish(f"scores: {figures['all']['ms_per_frame']:.1f} (goal <= {GOAL})", figures, options.json)


if __name__ == "__main__":
    main()
