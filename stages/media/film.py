"""The work of `concat`: clips become one film, encoded once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from stages.media.join import join
from stages.media.probe import probe
from stages.media.read import read_picture
from stages.media.write import Sound, VideoWriter
from stages.runtime.artifacts import Artifact, index_path, member_path, write_index
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Concat(Worker):
    def check(self, work: Work) -> None:
        clips = work.inputs["clips"]
        if len({clip.kind for clip in clips}) > 1:
            raise ItemError("clips and propagated frames are to be joined", "give one kind of them")
        if made_of_frames(work):
            if "source" in work.inputs:
                raise ItemError(f"{clips[0].path} has the frames of a whole film", "leave --source out")
            return
        for clip in clips:
            if needs_lossless(work) and ".mkv" not in clip.members:
                raise ItemError(f"{clip.path} has no lossless video to encode again", "decode it with --lossless")

    def run(self, work: Work, phase: str) -> None:
        write_frames(work) if made_of_frames(work) else write_clips(work)


def made_of_frames(work: Work) -> bool:
    return work.inputs["clips"][0].kind == "propagated"


def write_frames(work: Work) -> None:
    """A film of propagated frames, all of a video and in its order, at its mean rate, with the sound of another file."""
    parts: list[Artifact] = work.inputs["clips"]
    fields = parts[0].fields
    fps, count = Fraction(fields["source"]["fps"]), sum(len(part.fields["frames"]) for part in parts)
    sound = None
    if "sound" in work.inputs and work.options["keep_audio"] and (heard := probe(work.inputs["sound"])).has_audio:
        sound = Sound(heard.path, heard.start, count / float(fps))
    size = fields["width"], fields["height"]
    with VideoWriter(work.output, *size, fps, crf=work.options["crf"], sound=sound) as film:
        for part in parts:
            for frame in part.fields["frames"]:
                film.write(read_picture(part.member(frame["suffix"])))
    described = {
        "width": size[0],
        "height": size[1],
        "num_frames": count,
        "fps": f"{fps.numerator}/{fps.denominator}",
        "parts": [{"name": part.path.name, "frames": len(part.fields["frames"])} for part in parts],
    }
    write_index(index_path(work.output), "film", described, [".mp4"])


def write_clips(work: Work) -> None:
    """A film of clips, behind a source if there is one."""
    clips: list[Artifact] = work.inputs["clips"]
    source: Path | None = work.inputs.get("source")
    fps = Fraction(clips[0].fields["fps"])
    names = work.options["names"] or [
        source.name if source else "",
        *(clip.path.with_suffix(".mp4").name for clip in clips),
    ]
    if not needs_lossless(work):
        shutil.copyfile(clips[0].member(".mp4"), work.output)
        parts = [clips[0].fields["num_frames"]]
    else:
        film = join(
            [clip.member(".mkv") for clip in clips],
            work.output,
            fps=fps,
            source=source,
            fit=work.options["fit"],
            crf=work.options["crf"],
            keep_audio=work.options["keep_audio"],
            allow_truncated=work.options["allow_truncated"],
        )
        parts = [film.source_frames] * bool(source) + film.part_frames
    members = [".mp4"]
    if work.options["prompts_log"]:
        path = member_path(work.output, "/prompts_log.txt")
        path.parent.mkdir()
        path.write_text(prompts_log(names, clips), encoding="utf-8")
        members.append("/prompts_log.txt")
    fields = {
        "width": clips[0].fields["width"],
        "height": clips[0].fields["height"],
        "num_frames": sum(parts),
        "fps": clips[0].fields["fps"],
        "parts": [{"name": name, "frames": count} for name, count in zip(names[-len(parts) :], parts)],
    }
    write_index(index_path(work.output), "film", fields, members)


def needs_lossless(work: Work) -> bool:
    """A clip alone is a film already, encoded once; anything else is encoded from the very pixels."""
    return len(work.inputs["clips"]) > 1 or "source" in work.inputs


def prompts_log(names: Sequence[str], clips: Sequence[Artifact]) -> str:
    """A record per link, in order: what it came from, its seed, what the model said and the prompt made of it."""
    records = []
    for link, (source, name, clip) in enumerate(zip(names, names[1:], clips), 1):
        records.append(
            f"link {link}: {name}\nseed: {clip.fields['seed']}\nsource: {source}\n"
            f"caption: {clip.fields['raw'] or '(given)'}\nprompt: {clip.fields['prompt']}\n"
        )
    return "\n".join(records)
