"""Likeness to a reference video: PSNR, SSIM and VMAF, by the ffmpeg program."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg

from stages.media.probe import SAFE_INPUT, Source, frame_times, local_url, probe
from stages.media.scores.film import Figures
from stages.runtime.errors import ItemError, one_line

EQUAL = 100.0  # decibels of equal frames, whose PSNR is infinite
LEAST_SIDE = 64  # pixels that VMAF's four scales need
FIGURES = {"psnr": r"PSNR .*average:(\S+)", "ssim": r"SSIM .*All:(\S+)", "vmaf": r"VMAF score: (\S+)"}


def compare(film: Source, path: Path) -> Figures:
    """Compare a film with the reference at `path`, frame by frame up to the end of the shorter one.

    The reference is scaled to the size of the film. Raises ItemError for a file that is no video.
    """
    reference = probe(path)
    filters = ["psnr=shortest=1:repeatlast=0", "ssim=shortest=1:repeatlast=0"]
    if min(film.size) >= LEAST_SIDE:
        filters.append(f"libvmaf=shortest=1:repeatlast=0:n_threads={len(os.sched_getaffinity(0))}")
    log = run_ffmpeg(graph(film, reference, filters), film.path, reference.path)
    found = {name: re.findall(pattern, log) for name, pattern in FIGURES.items()}
    figures: Figures = {name: min(float(values[-1]), EQUAL) if values else None for name, values in found.items()}
    return {**figures, "frames": min(len(frame_times(film)), len(frame_times(reference)))}


def graph(film: Source, reference: Source, filters: list[str]) -> str:
    """A filter graph in which frames meet by their numbers: the film goes through all filters, the reference into each."""
    width, height = film.size
    same = f"settb=1/1000,setpts=N,scale={width}:{height}:flags=bicubic,format=yuv420p"
    copies = "".join(f"[r{number}]" for number in range(len(filters)))
    parts = [f"[0:{film.stream}]{same}[f0]", f"[1:{reference.stream}]{same},split={len(filters)}{copies}"]
    parts += [f"[f{number}][r{number}]{one}[f{number + 1}]" for number, one in enumerate(filters)]
    return ";".join(parts)


def run_ffmpeg(filter_graph: str, *inputs: Path) -> str:
    """Run a filter graph over two videos, and return what ffmpeg says. Raises ItemError."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-nostats", "-hide_banner"]
    for path in inputs:
        command += [word for name, value in SAFE_INPUT.items() for word in (f"-{name}", value)] + ["-i", local_url(path)]
    last = re.findall(r"\[f\d+\]", filter_graph)[-1]
    command += ["-filter_complex", filter_graph, "-map", last, "-fps_mode", "passthrough", "-f", "null", "-"]
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.decode("utf-8", "replace")
    if process.returncode:
        reason = one_line(ValueError(said.strip().splitlines()[-1] if said.strip() else "no reason given"))
        raise ItemError(f"{inputs[0]} cannot be compared with {inputs[1]} ({reason})", "check the reference")
    return said
