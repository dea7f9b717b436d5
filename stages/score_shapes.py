"""Scores of a run on clips of shapes world, for `score`: captions, and the colour, shape and motion of the objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stages.runtime.errors import ItemError, UsageError
from stages.runtime.table import table

if TYPE_CHECKING:
    import numpy as np

    from stages.media.shapes.dataset import Source
    from stages.media.shapes.score import Row
    from stages.plan.resolve import Clip
    from stages.plan.runs import RunPlan
    from stages.runtime.artifacts import Artifact


SCENES = "scenes.jsonl"  # beside the folder of a data set's videos


class Run:
    """A run: its planned clips and the artifacts of their stages. The paths of source videos are relative to `root`.

    `scenes` is the file that describes the source videos. Without it, each data set's own scenes.jsonl is read.
    """

    def __init__(self, planned: RunPlan, root: Path, scenes: Path | None = None):
        from stages.media.shapes import dataset

        self.planned, self.root = planned, root
        self.scenes = scenes
        self._read_scenes = cache(dataset.read)
        # only the recipe knows the paths of the artifacts
        self.outputs = {(item.id, part.stage.name): Path(item.output) for part in self.planned.parts for item in part.items}

    @property
    def is_of_shapes(self) -> bool:
        """Whether the clips are of shapes world: their sources have scenes, or their prompts name a colour and a shape."""
        from stages.media.shapes.score import slots

        def is_known(clip: Clip) -> bool:
            if clip.video:
                return bool(self.scenes) or (self.root / clip.video).parent.parent.joinpath(SCENES).is_file()
            if clip.run.recipe in OF_SOURCE:
                return False
            return bool(clip.prompts) and {"color", "shape"} <= slots(clip.prompts[0]).keys()

        return self.planned.run.recipe in MEASURES and all(map(is_known, self.planned.clips))

    def rows(self) -> Iterable[Row]:
        measure = MEASURES.get(self.planned.run.recipe)
        if measure is None:
            raise UsageError(
                f"run {self.planned.run.name} is of recipe {self.planned.run.recipe}",
                f"score knows {', '.join(MEASURES)}",
            )
        return (measure(self, clip) for clip in self.planned.clips)

    def artifact(self, identity: str, stage: str, kind: str) -> Artifact:
        """The output of a stage for an item. Raises ItemError if it is missing, damaged or failed."""
        from stages.runtime import artifacts

        artifact = artifacts.read(self.outputs[identity, stage], (kind,))
        if artifact.failure:
            raise ItemError(str(artifact.failure))
        return artifact

    def clip(self, identity: str) -> Artifact:
        """A generated clip; of several takes, the picked one. Raises ItemError."""
        return self.artifact(identity, "pick" if (identity, "pick") in self.outputs else "decode", "clip")

    def pixels(self, identity: str) -> np.ndarray:
        """The frames of a generated clip, uint8 [T, H, W, 3], from the lossless file if there is one. Raises ItemError."""
        import numpy as np

        from stages.media.read import frames

        artifact = self.clip(identity)
        video = artifact.member(".mkv" if ".mkv" in artifact.members else ".mp4")
        return np.stack([frame.rgb for frame in frames(video)])

    def new_pixels(self, identity: str) -> tuple[np.ndarray, int]:
        """The frames of a generated clip, without those that repeat its source, but for the last of these, if there are any.

        Also whether that one is there: 1, or 0. Raises ItemError.
        """
        repeated = self.clip(identity).fields.get("repeated_frames", 1)
        return self.pixels(identity)[max(0, repeated - 1) :], min(1, repeated)

    def propagated(self, identities: Iterable[str]) -> np.ndarray:
        """The frames of a film's propagated parts, uint8 [T, H, W, 3]. Raises ItemError."""
        import numpy as np

        from stages.media.members import read_member

        parts = [self.artifact(identity, "propagate", "propagated") for identity in identities]
        return np.stack([read_member(part, frame["suffix"]) for part in parts for frame in part.fields["frames"]])

    def captions(self, true: Mapping[str, str]) -> dict[str, float]:
        """Shares of correct captions, by measure, among the captioned items; empty if none is captioned.

        `true` maps an item to its correct caption. A take after the first has the caption of the first.
        """
        from stages.media.shapes import score

        scores = []
        for identity, text in true.items():
            if (identity, "caption_vlm") not in self.outputs:
                continue
            try:
                scores.append(score.caption(self.artifact(identity, "caption_vlm", "caption").fields["raw"], text))
            except ItemError:
                scores.append(score.NO_CAPTION)
        return {name: fmean(measures[name] for measures in scores) for name in score.NO_CAPTION} if scores else {}

    def source(self, clip: Clip) -> Source:
        """The scene of a clip's source video. Raises UsageError if no file describes it."""
        video = self.root / clip.video
        path = self.scenes or video.parent.parent / SCENES
        known = self._read_scenes(path)
        if video.stem not in known:
            raise UsageError(f"{path} does not know {video.name}, the source of clip {clip.id}", "give --scenes of its set")
        return known[video.stem]


def score_v2v(run: Run, clip: Clip) -> Row:
    """Score the caption of the source, and the clip against the true continuation of the source."""
    from stages.media.shapes import score

    source = run.source(clip)
    figures, failed = run.captions({clip.id: source.caption}) if not clip.prompts else {}, ""
    try:
        pixels, repeated = run.new_pixels(clip.id)
        check_shape(clip, pixels)
        figures |= score.continuation(pixels, source.scene, source.frames - repeated)
    except ItemError as error:
        figures |= score.WRONG
        failed = str(error)
    return score.Row(clip.id, score.is_held_out(vars(source.scene)), failed, figures)


def score_chain(run: Run, clip: Clip) -> Row:
    """Score each link against the true continuation of the source, and the caption that precedes it."""
    from stages.media.shapes import score

    source, links, failed, repeated = run.source(clip), [], "", 1
    planned = [f"{clip.id}/link{number + 1:02d}" for number in range(clip.values["recipe"]["links"])]
    try:
        for identity in planned:
            pixels, repeated = run.new_pixels(identity)
            links.append(pixels)
            check_shape(clip, pixels)
    except ItemError as error:
        failed = str(error)  # the later links start from this one
    figures = score.chain(links, source.scene, source.frames - repeated, len(planned), repeated)
    if not clip.prompts:
        figures |= run.captions(dict.fromkeys(planned, source.caption))
    return score.Row(clip.id, score.is_held_out(vars(source.scene)), failed, figures)


def score_text(run: Run, clip: Clip) -> Row:
    """Score a clip of `text2video` or `dynamicrafter` against its prompt."""
    from stages.media.shapes import score

    prompt, failed = clip.prompts[0], ""
    named = score.slots(prompt)
    if not named:
        raise UsageError(
            f"the prompt of clip {clip.id} is {prompt!r}", "score knows the colours, shapes and motions of shapes world"
        )
    try:
        parts = score.prompt_match(run.pixels(clip.id), prompt)
    except ItemError as error:
        parts, failed = score.missing_clip(prompt), str(error)
    return score.Row(clip.id, score.is_held_out(named), failed, parts)


def score_longlive(run: Run, clip: Clip) -> Row:
    """Score each part of a film against its prompt; of several samples, the first.

    A film that begins with its source is also scored against the true continuation, with the motion of the last prompt.
    """
    from stages.media.shapes import score, world

    source = run.source(clip) if clip.video else None
    try:
        encoded = run.artifact(clip.id, "encode", "encoded").fields
        identity = next(i for i in (clip.id, f"{clip.id}/sample0") if (i, "decode") in run.outputs)
        film, fields = run.pixels(identity), run.clip(identity).fields
        prompts, starts = fields["part_prompts"], [*accumulate(fields["part_frames"])][:-1]
        if len(film) != encoded["num_frames"]:
            raise UsageError(f"the film of {clip.id} lacks its source", "run without new_only to score it")
        check_shape(clip, film)
    except ItemError as error:
        named = score.slots(clip.prompts[0] if clip.prompts else clip.values["recipe"]["prompt2"])
        return score.Row(clip.id, score.is_held_out(named), str(error), score.parts([], 2))
    figures = score.parts([(film[max(0, a - 1) : b], text) for a, b, text in zip([0, *starts], [*starts, None], prompts)])
    begins_with_source = "repeated_frames" not in fields
    if source and begins_with_source and len(prompts) == 2:
        seam = starts[0] - 1  # the source's last frame
        continuation = world.turn(source.scene, score.slots(prompts[1]).get("direction", source.scene.direction), seam)
        figures |= {name: value for name, value in score.continuation(film[seam:], continuation, 0).items() if "_" in name}
    return score.Row(clip.id, score.is_held_out(score.slots(prompts[-1])), "", figures)


def score_fresco(run: Run, clip: Clip) -> Row:
    """Score a film against the look of its prompt and against the scene of its source."""
    from stages.media.shapes import score

    source, failed = run.source(clip), ""
    try:
        pixels = run.propagated(f"{clip.id}/part{part}" for part in range(clip.values["media"]["parts"]))
        check_shape(clip, pixels)
        figures = score.translation(pixels, source.scene)
    except ItemError as error:
        figures, failed = dict.fromkeys(("look", "color", "shape", "direction"), False), str(error)
    return score.Row(clip.id, score.is_held_out(vars(source.scene)), failed, figures)


MEASURES = {
    "v2v": score_v2v,
    "chain": score_chain,
    "text2video": score_text,
    "longlive": score_longlive,
    "dynamicrafter": score_text,
    "fresco": score_fresco,
}
OF_SOURCE = ("v2v", "chain", "fresco")  # recipes whose films are compared with the scene of their source


def check_shape(clip: Clip, pixels: np.ndarray) -> None:
    """Raise UsageError for a clip that is not square: it shows only a part of its source."""
    _, height, width, _ = pixels.shape
    if width != height:
        raise UsageError(f"clip {clip.id} is {width}x{height}, its source is a square", "run with a square size to score it")


def score_run(folder: Path, scenes: Path | None = None) -> dict[str, Any]:
    """The scores of the run in a folder, as `score_shapes` gives them."""
    from stages.plan.finished import read_plan

    return score_shapes(folder, Run(*read_plan(folder), scenes))


def score_shapes(folder: Path, run: Run) -> dict[str, Any]:
    """The scores of a run: `summary` by group, and `clips` with one row each. They are also written to FOLDER/score.json."""
    from stages.media.shapes import score
    from stages.runtime.files import write_if_changed

    rows = list(run.rows())
    result = {
        "recipe": run.planned.run.recipe,
        "summary": score.summarize(rows),
        "clips": [{"clip": r.clip, "held_out": r.held_out, "failed": r.failed, **r.figures} for r in rows],
    }
    write_if_changed(str(folder / "score.json"), json.dumps(result, indent=1) + "\n")
    return result


def summary_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per score, one column per group."""
    names = dict.fromkeys(name for figures in summary.values() for name in figures)
    lines = [["", *(group.replace("_", " ") for group in summary)]]
    lines += [[name, *(cell(figures.get(name)) for figures in summary.values())] for name in names]
    return table(lines, figures=True)


def cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
