"""`concat` as a user runs it: seams, the source in front, one encoding, the log of prompts."""

import json

import numpy as np
import pytest

from stages.media import select
from stages.media.probe import probe
from stages.media.read import frames
from stages.media.write import VideoWriter, write_member
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.records import fields


def clip(folder, name, colors, lossless=True):
    """A clip of 64x48 frames of one grey each."""
    folder.mkdir(exist_ok=True)
    for suffix, codec in {".mp4": "h264", **({".mkv": "lossless"} if lossless else {})}.items():
        with VideoWriter(folder / f"{name}{suffix}", 64, 48, 16, codec=codec) as video:
            for color in colors:
                video.write(np.full((48, 64, 3), color, np.uint8))
    film = {"width": 64, "height": 48, "num_frames": len(colors), "fps": "16/1"}
    names = {"seed": 40 + len(name), "raw": f"raw {name}", "prompt": f"prompt {name}"}
    suffixes = [".mp4", ".mkv"] if lossless else [".mp4"]
    artifacts.write_index(folder / f"{name}.json", "clip", fields("clip", **film, **names), suffixes)
    return folder / f"{name}.json"


def greys(path):
    return [round(float(frame.rgb.mean())) for frame in frames(path)]


def test_links_are_joined_without_their_doubled_seams(tmp_path):
    parts = [clip(tmp_path, "a", [10, 60, 110]), clip(tmp_path, "b", [110, 160, 210]), clip(tmp_path, "c", [210, 240])]
    stage("concat", *parts, "--output", tmp_path / "film.mp4")
    assert greys(tmp_path / "film.mp4") == pytest.approx([10, 60, 110, 160, 210, 240], abs=2)
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert (film.fields["num_frames"], film.fields["fps"]) == (6, "16/1")
    assert [part["frames"] for part in film.fields["parts"]] == [3, 2, 1]


def test_a_clip_alone_is_not_encoded_again(tmp_path):
    part = clip(tmp_path, "a", [10, 60], lossless=False)
    stage("concat", part, "--output", tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_a_clip_alone_may_be_a_single_frame(tmp_path):
    stage("concat", clip(tmp_path, "a", [10], lossless=False), "--output", tmp_path / "film.mp4")
    assert artifacts.read(tmp_path / "film.mp4", ("film",)).fields["num_frames"] == 1


@pytest.mark.parametrize(
    ("changed", "others", "complaint"),
    [
        ({"width": 32}, 0, "a.mp4 is 64x48, and {} says 32x48"),
        ({"width": 32}, 1, "a.mkv is 64x48, and {} says 32x48"),
        ({"num_frames": 500}, 0, "a.mp4 has 2 frames at 16 per second instead of 500 at 16"),
        ({"fps": "24/1"}, 0, "a.mp4 has 2 frames at 16 per second instead of 2 at 24"),
        ("no video", 0, "a.mp4 is not a readable video"),
    ],
)
def test_a_clip_that_is_not_as_its_index_tells_makes_no_film(tmp_path, changed, others, complaint):
    parts = [clip(tmp_path, name, [10, 60]) for name in ("a", "b")[: 1 + others]]
    fields, members = told(parts[0])
    if isinstance(changed, str):
        (tmp_path / "a.mp4").write_text(changed)
    else:
        fields |= changed
    artifacts.write_index(parts[0], "clip", fields, members)
    said = stage("concat", *parts, "--output", tmp_path / "film.mp4", fails=1)
    assert complaint.format(parts[0]) in said and not (tmp_path / "film.mp4").exists()


def test_the_source_comes_in_front_at_the_film_s_rate_with_its_sound(tmp_path):
    source = zoo.plain(tmp_path, frames=24, fps=8, sound=3)
    stage("concat", clip(tmp_path, "a", [10, 60, 110]), "--source", source, "--output", tmp_path / "film.mp4")
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert [part["frames"] for part in film.fields["parts"]] == [48, 2]
    assert probe(tmp_path / "film.mp4").has_audio
    stage("concat", tmp_path / "a.json", "--source", source, "--no-keep-audio", "--output", tmp_path / "silent.mp4")
    assert not probe(tmp_path / "silent.mp4").has_audio


def test_a_truncated_source_is_refused_unless_allowed(tmp_path):
    source, part = zoo.truncated(tmp_path), clip(tmp_path, "a", [10, 60])
    said = stage("concat", part, "--source", source, "--output", tmp_path / "film.mp4", fails=1)
    assert "is truncated or damaged" in said
    stage("concat", part, "--source", source, "--allow-truncated", "--output", tmp_path / "film.mp4")
    read = len(select.last(source, 99, allow_truncated=True))
    assert [part["frames"] for part in artifacts.read(tmp_path / "film.mp4", ("film",)).fields["parts"]] == [read, 1]


def test_the_log_of_prompts_is_in_order(tmp_path):
    parts = [clip(tmp_path, "a", [10, 60]), clip(tmp_path, "bb", [60, 110])]
    source = zoo.plain(tmp_path)
    stage("concat", *parts, "--source", source, "--prompts-log", "--output", tmp_path / "film.mp4")
    assert (tmp_path / "film" / "prompts_log.txt").read_text() == (
        "link 1: a.mp4\nseed: 41\nsource: plain.mp4\ncaption: raw a\nprompt: prompt a\n\n"
        "link 2: bb.mp4\nseed: 42\nsource: a.mp4\ncaption: raw bb\nprompt: prompt bb\n"
    )


def test_what_was_decoded_without_its_lossless_video_cannot_be_joined(tmp_path):
    parts = [clip(tmp_path, "a", [10], lossless=False), clip(tmp_path, "b", [10, 20])]
    said = stage("concat", *parts, "--output", tmp_path / "film.mp4", fails=1)
    assert "a.json has no lossless video to encode again: decode it with --lossless" in said


@pytest.mark.parametrize("fps", ["1000000/1", "999999999999999999", "1/999999999999999999"])
def test_a_clip_of_a_rate_that_cannot_be_is_refused(tmp_path, fps):
    part = clip(tmp_path, "a", [10, 60])
    part.write_text(part.read_text().replace('"16/1"', f'"{fps}"'))
    said = stage("concat", part, "--source", zoo.plain(tmp_path), "--output", tmp_path / "film.mp4", fails=1)
    assert f"a.json is not a whole Kinemake file (fps is {fps}" in said


def propagated(path, times, size=(64, 48)):
    """A part of a clip, its frames shown at `times`."""
    listed = [{"index": n, "time": time, "suffix": f"/{n:06d}.png"} for n, time in enumerate(times)]
    for frame in listed:
        write_member(path, frame["suffix"], np.zeros((size[1], size[0], 3), np.uint8))
    described = fields("propagated", width=size[0], height=size[1], frames=listed)
    artifacts.write_index(path, "propagated", described, [frame["suffix"] for frame in listed])
    return path


def test_a_frame_of_another_size_than_its_index_tells_is_refused(tmp_path):
    part = propagated(tmp_path / "p.json", [0.0, 0.125, 0.25])
    write_member(part, "/000001.png", np.zeros((64, 48, 3), np.uint8))
    artifacts.write_index(part, "propagated", *told(part))
    said = stage("concat", part, "--output", tmp_path / "film.mp4", fails=1)
    assert f"p/000001.png is 48x64, and {part} says 64x48: make it again" in said


def told(index):
    """The fields of an index and the suffixes of its members."""
    head = json.loads(index.read_text())
    return head["fields"], list(head["members"])


@pytest.mark.parametrize(
    ("times", "size", "complaint"),
    [
        ([], (64, 48), "hold no frames"),
        ([0.0, 0.2, 0.1], (64, 48), "has a frame at 0.1 s, and the one before it is at 0.2 s"),
        ([0.0, 0.0, 0.5], (64, 48), "has a frame at 0.0 s, and the one before it is at 0.0 s"),
        ([0.0, 0.1, 1e9], (64, 48), "has a frame at 1000000000.0 s"),
        ([0.0, 0.1], (65, 48), "is 65x48, and H.264 needs even sides"),
    ],
)
def test_parts_that_make_no_film_fail_alone(tmp_path, times, size, complaint):
    rows = [
        {"clips": [str(propagated(tmp_path / f"{name}0.json", *shown))], "output": str(tmp_path / f"{name}.mp4")}
        for name, shown in {"bad": (times, size), "good": ([0.0, 0.125, 0.25],)}.items()
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = stage("concat", "--manifest", tmp_path / "manifest.jsonl", fails=1)
    assert complaint in said and "bug" not in said
    assert artifacts.read(tmp_path / "good.mp4", ("film",)).fields["num_frames"] == 3
