"""The worker of `score`: one pass over a film, in which all groups of scores are measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

from stages.media.options import ScoreOptions
from stages.media.probe import Source, frame_times, probe
from stages.media.read import frames
from stages.media.scores.drift import Drift
from stages.media.scores.figures import FIGURES
from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.flicker import Flicker
from stages.media.scores.frames import Look, Step, reduced_size
from stages.media.scores.health import Health
from stages.media.scores.motion import Motion
from stages.media.scores.reference import compare
from stages.media.scores.seams import Seams
from stages.media.select import midpoints
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

GROUPS: dict[str, type[Group]] = {"health": Health, "motion": Motion, "flicker": Flicker, "seams": Seams, "drift": Drift}
SOURCE_FRAMES = 16  # of the source, spread evenly: what its look is


class Score(Worker[ScoreOptions]):
    """Writes `scores`."""

    def check(self, work: Work[ScoreOptions]) -> None:
        if work.options.seams != sorted({place for place in work.options.seams if place > 0}):
            raise ItemError(f"the seams are {work.options.seams}", "give the frames at which parts begin, in order, above 0")

    def run(self, work: Work[ScoreOptions]) -> None:
        options, video, source = work.options, probe(video_of(work)), source_of(work)
        times = frame_times(video)
        aligned = source is not None and self._is_aligned(work, source, len(times))
        film = Film(times, parts_of(work, len(times)), looks_of(source) if source else (), aligned, cuts_of(work))
        groups = {name: GROUPS[name](film) for name in GROUPS if name in options.scores}
        guide = source if aligned and "flicker" in groups else None
        count = 0
        for look, step in steps(video, guide, options.allow_truncated) if groups else ():
            count = look.index + 1
            for group in groups.values():
                group.add(look, step)
        figures = {f"{name}.{figure}": value for name, group in groups.items() for figure, value in group.figures().items()}
        if "reference" in options.scores and options.reference:
            found: Figures = compare(video, Path(options.reference))
            figures |= {f"reference.{name}": value for name, value in found.items()}
        fields = {
            "width": video.width,
            "height": video.height,
            "num_frames": count or len(times),
            "fps": f"{video.fps.numerator}/{video.fps.denominator}",
            "scores": options.scores,
            "figures": {name: rounded(figures[name]) for name in FIGURES if name in figures},
            "details": {
                name: [{key: rounded(value) for key, value in row.items()} for row in rows]
                for name, group in groups.items()
                if (rows := group.details())
            },
            "flow": "source" if guide else "film",
        }
        write_index(work.output, "scores", fields)

    @staticmethod
    def _is_aligned(work: Work[ScoreOptions], source: Path, count: int) -> bool:
        """Whether the film shows its source frame by frame, so that the source's flow is that of the film."""
        return work.options.aligned is not False and len(frame_times(probe(source))) == count


def video_of(work: Work[Any]) -> Path:
    """The video of a film, of a clip (the lossless one, if there is one), or the user's own file."""
    film = work.input("film")
    if isinstance(film, Path):
        return film
    return film.path if film.kind == "film" else film.member(".mkv" if ".mkv" in film.members else ".mp4")


def source_of(work: Work[Any]) -> Path | None:
    source = work.optional("source")
    assert not isinstance(source, Artifact)
    return source


def parts_of(work: Work[ScoreOptions], count: int) -> list[tuple[str, int]]:
    """The parts of a film of `count` frames: those between the given seams, else those that its index lists.

    Raises ItemError for a seam beyond the film.
    """
    film, seams = work.input("film"), work.options.seams
    if seams and seams[-1] >= count:
        raise ItemError(f"seam {seams[-1]} lies beyond the film, which has {count} frames", "leave it out")
    if seams or not isinstance(film, Artifact):
        return [(f"from frame {a}", b - a) for a, b in pairwise([0, *seams, count])]
    return [(part["name"], part["frames"]) for part in film.fields.get("parts", ())]


def cuts_of(work: Work[ScoreOptions]) -> frozenset[int]:
    """The numbers of the parts, from 0, that do not go on from the one before, as the index of the film says."""
    film = work.input("film")
    parts = film.fields.get("parts", ()) if isinstance(film, Artifact) else ()
    return frozenset(number for number, part in enumerate(parts) if part.get("cut"))


def looks_of(source: Path) -> list[Look]:
    """Frames of the source. A damaged source is compared by its good frames."""
    return [Look(frame.index, frame.time, frame.rgb) for frame in midpoints(source, SOURCE_FRAMES, allow_truncated=True)]


def steps(video: Source, guide: Path | None = None, allow_truncated: bool = False) -> Iterator[tuple[Look, Step | None]]:
    """Each frame of a video with the step that leads to it; at most two frames are held."""
    size = reduced_size(*video.size)
    guiding = (frame.rgb for frame in frames(guide, allow_damage=True)) if guide else ()
    before: Look | None = None
    change: float | None = None
    guide_before: Look | None = None
    for frame, other in zip(frames(video, allow_damage=allow_truncated), chain(guiding, repeat(None))):
        look = Look(frame.index, frame.time, frame.rgb, size)
        shown = None if other is None else Look(frame.index, frame.time, other, size)
        if before is None:
            yield look, None
        else:
            guided = Step(guide_before, shown) if guide_before and shown else None
            step = Step(before, look, change, guided)
            yield look, step
            change = step.change
        before, guide_before = look, shown


def rounded(value: float | str | None) -> float | str | None:
    """A figure with the digits that mean something."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
