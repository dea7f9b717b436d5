"""The worker of `concat`: joins clips to one video, encoded once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stages.media.join import MAX_FRAME_SECONDS, assemble, check_video, join
from stages.media.marks import marks_of, read_marks
from stages.media.members import check_size, read_member
from stages.media.options import ConcatOptions
from stages.media.probe import probe
from stages.runtime.artifacts import Artifact, index_path, member_path, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Concat(Worker[ConcatOptions]):
    """Writes `film`: the source, if there is one, and the clips; or all propagated parts of a clip."""

    def check(self, work: Work[ConcatOptions]) -> None:
        clips = work.artifacts("clips")
        width, height = clips[0].fields["width"], clips[0].fields["height"]
        if width % 2 or height % 2:
            raise ItemError(f"{clips[0].path} is {width}x{height}, and H.264 needs even sides", "make it with even sides")
        if others := [clip for clip in clips if clip.kind != clips[0].kind]:
            raise ItemError(
                f"{others[0].path} is a {others[0].kind}, {clips[0].path} a {clips[0].kind}", "give clips of one kind"
            )
        if work.options.extras and (len(clips) > 1 or clips[0].kind == "propagated"):
            raise ItemError(f"{clips[0].path} is not a single clip, whose extras could be kept", "leave --extras out")
        if clips[0].kind == "propagated":
            if work.options.prompts_log:
                raise ItemError(f"{clips[0].path} has no prompts to log", "leave --prompts-log out")
            return check_parts(clips)
        for clip in clips:
            if needs_lossless(work) and ".mkv" not in clip.members:
                raise ItemError(f"{clip.path} has no lossless video to encode again", "decode it with --lossless")

    def run(self, work: Work[ConcatOptions]) -> None:
        clips = work.artifacts("clips")
        source = source_of(work)
        propagated = clips[0].kind == "propagated"
        fps = Fraction(clips[0].fields["source"]["fps"] if propagated else clips[0].fields["fps"])
        names = work.options.names or [
            source.name if source else "",
            *(clip.path.name if propagated else clip.path.with_suffix(".mp4").name for clip in clips),
        ]
        logged, cuts = names, cuts_of(work.options)
        if propagated:
            parts = assemble_parts(work, fps)
        elif not needs_lossless(work):
            copy_clip(clips[0], fps, work.output, work.options.private)
            parts = clips[0].fields.get("part_frames", [clips[0].fields["num_frames"]])
            names = names[-1:] * len(parts)
        else:
            for clip in clips:
                check_size(clip, clip.member(".mkv"), probe(clip.member(".mkv")).size)
            joined = join(
                [clip.member(".mkv") for clip in clips],
                work.output,
                fps=fps,
                repeated=[
                    0 if number in cuts else clip.fields.get("repeated_frames", 1) for number, clip in enumerate(clips, 1)
                ],
                source=source,
                fit=work.options.fit,
                crf=work.options.crf,
                keep_audio=work.options.keep_audio,
                allow_truncated=work.options.allow_truncated,
                marks=marks_of(clips, work.options.private, composite=source is not None),
            )
            parts = [joined.source_frames, *joined.part_frames] if source else joined.part_frames
        members = [".mp4"]
        if work.options.prompts_log:
            path = member_path(work.output, "/prompts_log.txt")
            path.parent.mkdir()
            path.write_text(prompts_log(logged, clips, cuts), encoding="utf-8")
            members.append("/prompts_log.txt")
        if work.options.extras:
            members += copy_extras(clips[0], work.output)
        fields = {
            "width": clips[0].fields["width"],
            "height": clips[0].fields["height"],
            "num_frames": sum(parts),
            "fps": f"{fps.numerator}/{fps.denominator}",
            "parts": describe_parts(clips, names[-len(parts) :], parts, cuts),
        }
        write_index(index_path(work.output), "film", fields, members)


def cuts_of(options: ConcatOptions) -> dict[int, str]:
    """The sources of the clips that do not go on from the one before, by the number of the clip."""
    return {int(number): source for number, _, source in (text.partition(": ") for text in options.cuts)}


def describe_parts(
    clips: Sequence[Artifact], names: Sequence[str], counts: Sequence[int], cuts: Collection[int] = ()
) -> list[dict[str, Any]]:
    """The parts of a film, with the prompt of each: a clip, or of longlive a part of one. A source in front has none.

    Parts that do not go on from the one before are marked as cuts.
    """
    parts: list[dict[str, Any]] = [{"name": name, "frames": count} for name, count in zip(names, counts)]
    prompts = [prompt for clip in clips for prompt in prompts_of(clip)]
    if len(parts) - len(prompts) in (0, 1):
        for part, prompt in zip(parts[-len(prompts) :], prompts):
            part["prompt"] = prompt
    for number in cuts:
        parts[number - len(clips) - 1]["cut"] = True
    return parts


def prompts_of(clip: Artifact) -> list[str]:
    """The prompts of the parts of a clip, of which all but longlive's have one. Propagated frames have none."""
    return clip.fields.get("part_prompts") or [clip.fields[name] for name in ("prompt",) if name in clip.fields]


def copy_extras(clip: Artifact, output: Path) -> list[str]:
    """Copy the GIF, the images and the contact sheet of a clip to the place of the film's. Returns their suffixes."""
    extras = [suffix for suffix in clip.members if suffix in (".gif", ".sheet.png") or suffix.startswith("/")]
    for suffix in extras:
        path = member_path(output, suffix)
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(clip.member(suffix), path)
    return extras


def copy_clip(clip: Artifact, fps: Fraction, output: Path, private: bool) -> None:
    """Copy the video of a clip, with its marks, to `output`.

    Raises ItemError if the video does not have the size, the rate and the number of frames in the clip's index, and if a
    `private` film would have a prompt in its marks.
    """
    video, count = clip.member(".mp4"), clip.fields["num_frames"]
    check_size(clip, video, probe(video).size)
    check_video(video, np.arange(count) / float(fps), fps)
    if private and (marks := read_marks(video)) and marks.prompt:
        raise ItemError(f"{video} has its prompt in its metadata", "decode it with --private")
    shutil.copyfile(video, output)


def check_parts(parts: Sequence[Artifact]) -> None:
    """Raise ItemError unless the parts are those of one clip, in order and without gaps; a part may have no frames."""
    if not any(part.fields["frames"] for part in parts):
        raise ItemError(f"the parts from {parts[0].path} on hold no frames", "make them again with propagate")
    for before, part in pairwise(part for part in parts if part.fields["frames"]):
        last, first = before.fields["frames"][-1]["index"], part.fields["frames"][0]["index"]
        if part.fields["source"] != before.fields["source"] or first != last + 1:
            raise ItemError(
                f"{part.path} begins at frame {first}, and {before.path} before it ends at frame {last}",
                "give the parts of one clip in order",
            )
    shown = [(part, frame["time"]) for part in parts for frame in part.fields["frames"]]
    for (_, before), (part, time) in pairwise(shown):
        if not 0 < time - before <= MAX_FRAME_SECONDS:
            raise ItemError(
                f"{part.path} has a frame at {time} s, and the one before it is at {before} s",
                "give frames with ascending times, at most an hour apart",
            )


def assemble_parts(work: Work[ConcatOptions], fps: Fraction) -> list[int]:
    """Write propagated parts as one video, each frame at its time in the source, with the sound of the source if given.

    Returns the number of frames of each part.
    """
    parts, source = work.artifacts("clips"), source_of(work)
    counts = [len(part.fields["frames"]) for part in parts]
    assemble(
        (read_member(part, frame["suffix"]) for part in parts for frame in part.fields["frames"]),
        [frame["time"] for part in parts for frame in part.fields["frames"]],
        work.output,
        size=(parts[0].fields["width"], parts[0].fields["height"]),
        fps=fps,
        crf=work.options.crf,
        sound_of=probe(source) if source and work.options.keep_audio else None,
        marks=marks_of(parts, work.options.private),
    )
    return counts


def source_of(work: Work[ConcatOptions]) -> Path | None:
    """The video that comes first, or whose sound is added; None without one."""
    source = work.optional("source")
    assert not isinstance(source, Artifact)
    return source


def needs_lossless(work: Work[ConcatOptions]) -> bool:
    """Whether clips are encoded again, from their lossless videos; a single clip is copied."""
    return len(work.artifacts("clips")) > 1 or "source" in work.inputs


def prompts_log(names: Sequence[str], clips: Sequence[Artifact], cuts: Mapping[int, str]) -> str:
    """A record per link, in order: its source, its seed, the caption of the vision-language model and the final prompt.

    Each is one line: line breaks in captions and prompts become spaces.
    """
    records = []
    for link, (source, name, clip) in enumerate(zip(names, names[1:], clips), 1):
        caption, prompt = (" ".join(str(clip.fields[field] or "").split()) for field in ("raw", "prompt"))
        records.append(
            f"link {link}: {name}\nseed: {clip.fields['seed']}\nsource: {cuts.get(link, source)}\n"
            f"caption: {caption or '(given)'}\nprompt: {prompt}\n"
        )
    return "\n".join(records)
