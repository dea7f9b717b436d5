"""`concat` as a user runs it: seams, the source in front, a single encoding, the prompts log."""

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


def write_clip(folder, name, colors, lossless=True):
    """Write a clip of 64x48 frames, each of one grey."""
    folder.mkdir(exist_ok=True)
    for suffix, codec in {".mp4": "h264", **({".mkv": "lossless"} if lossless else {})}.items():
        with VideoWriter(folder / f"{name}{suffix}", 64, 48, 16, codec=codec) as video:
            for color in colors:
                video.write(np.full((48, 64, 3), color, np.uint8))
    film = {"width": 64, "height": 48, "num_frames": len(colors), "fps": "16/1"}
    names = {"seed": 40 + len(name), "raw": f"raw {name}\nof two lines", "prompt": f"prompt {name}\nof two lines"}
    suffixes = [".mp4", ".mkv"] if lossless else [".mp4"]
    artifacts.write_index(folder / f"{name}.json", "clip", fields("clip", **film, **names), suffixes)
    return folder / f"{name}.json"


def frame_greys(path):
    return [round(float(frame.rgb.mean())) for frame in frames(path)]


def test_concat_joins_links_without_repeated_frames(tmp_path):
    parts = [
        write_clip(tmp_path, "a", [10, 60, 110]),
        write_clip(tmp_path, "b", [110, 160, 210]),
        write_clip(tmp_path, "c", [210, 240]),
    ]
    stage("concat", *parts, "--output", tmp_path / "film.mp4")
    assert frame_greys(tmp_path / "film.mp4") == pytest.approx([10, 60, 110, 160, 210, 240], abs=2)
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert (film.fields["num_frames"], film.fields["fps"]) == (6, "16/1")
    assert [part["frames"] for part in film.fields["parts"]] == [3, 2, 1]


def test_concat_of_one_clip_does_not_encode_it_again(tmp_path):
    part = write_clip(tmp_path, "a", [10, 60], lossless=False)
    stage("concat", part, "--output", tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_concat_takes_one_clip_of_a_single_frame(tmp_path):
    stage("concat", write_clip(tmp_path, "a", [10], lossless=False), "--output", tmp_path / "film.mp4")
    assert artifacts.read(tmp_path / "film.mp4", ("film",)).fields["num_frames"] == 1


@pytest.mark.parametrize(
    ("changed", "others", "message"),
    [
        ({"width": 32}, 0, "a.mp4 is 64x48, and {} says 32x48"),
        ({"width": 32}, 1, "a.mkv is 64x48, and {} says 32x48"),
        ({"num_frames": 500}, 0, "a.mp4 has 2 frames at 16 per second instead of 500 at 16"),
        ({"fps": "24/1"}, 0, "a.mp4 has 2 frames at 16 per second instead of 2 at 24"),
        ("no video", 0, "a.mp4 is not a readable video"),
    ],
)
def test_concat_refuses_a_clip_that_differs_from_its_index(tmp_path, changed, others, message):
    parts = [write_clip(tmp_path, name, [10, 60]) for name in ("a", "b")[: 1 + others]]
    fields, members = read_index(parts[0])
    if isinstance(changed, str):
        (tmp_path / "a.mp4").write_text(changed)
    else:
        fields |= changed
    artifacts.write_index(parts[0], "clip", fields, members)
    stderr = stage("concat", *parts, "--output", tmp_path / "film.mp4", fails=1)
    assert message.format(parts[0]) in stderr and not (tmp_path / "film.mp4").exists()


def test_concat_puts_the_source_in_front_at_the_film_rate_with_sound(tmp_path):
    source = zoo.plain(tmp_path, frames=24, fps=8, sound=3)
    stage("concat", write_clip(tmp_path, "a", [10, 60, 110]), "--source", source, "--output", tmp_path / "film.mp4")
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert [part["frames"] for part in film.fields["parts"]] == [48, 2]
    assert probe(tmp_path / "film.mp4").has_audio
    stage("concat", tmp_path / "a.json", "--source", source, "--no-keep-audio", "--output", tmp_path / "silent.mp4")
    assert not probe(tmp_path / "silent.mp4").has_audio


def test_concat_refuses_a_truncated_source_unless_allowed(tmp_path):
    source, part = zoo.truncated(tmp_path), write_clip(tmp_path, "a", [10, 60])
    stderr = stage("concat", part, "--source", source, "--output", tmp_path / "film.mp4", fails=1)
    assert "is truncated or damaged" in stderr
    stage("concat", part, "--source", source, "--allow-truncated", "--output", tmp_path / "film.mp4")
    read = len(select.last(source, 99, allow_truncated=True))
    assert [part["frames"] for part in artifacts.read(tmp_path / "film.mp4", ("film",)).fields["parts"]] == [read, 1]


def test_concat_writes_the_prompts_log_in_order(tmp_path):
    parts = [write_clip(tmp_path, "a", [10, 60]), write_clip(tmp_path, "bb", [60, 110])]
    source = zoo.plain(tmp_path)
    stage("concat", *parts, "--source", source, "--prompts-log", "--output", tmp_path / "film.mp4")
    assert (tmp_path / "film" / "prompts_log.txt").read_text() == (
        "link 1: a.mp4\nseed: 41\nsource: plain.mp4\ncaption: raw a of two lines\nprompt: prompt a of two lines\n\n"
        "link 2: bb.mp4\nseed: 42\nsource: a.mp4\ncaption: raw bb of two lines\nprompt: prompt bb of two lines\n"
    )


def test_concat_refuses_clips_without_lossless_video(tmp_path):
    parts = [write_clip(tmp_path, "a", [10], lossless=False), write_clip(tmp_path, "b", [10, 20])]
    stderr = stage("concat", *parts, "--output", tmp_path / "film.mp4", fails=1)
    assert "a.json has no lossless video to encode again: decode it with --lossless" in stderr


@pytest.mark.parametrize("fps", ["1000000/1", "999999999999999999", "1/999999999999999999"])
def test_concat_refuses_a_clip_with_an_impossible_rate(tmp_path, fps):
    part = write_clip(tmp_path, "a", [10, 60])
    part.write_text(part.read_text().replace('"16/1"', f'"{fps}"'))
    stderr = stage("concat", part, "--source", zoo.plain(tmp_path), "--output", tmp_path / "film.mp4", fails=1)
    assert f"a.json is not a whole Kinemake file (fps is {fps}" in stderr


def write_propagated(path, times, size=(64, 48)):
    """Write a part of a clip whose frames have the given times."""
    listed = [{"index": n, "time": time, "suffix": f"/{n:06d}.png"} for n, time in enumerate(times)]
    for frame in listed:
        write_member(path, frame["suffix"], np.zeros((size[1], size[0], 3), np.uint8))
    described = fields("propagated", width=size[0], height=size[1], frames=listed)
    artifacts.write_index(path, "propagated", described, [frame["suffix"] for frame in listed])
    return path


def test_concat_refuses_a_frame_whose_size_differs_from_the_index(tmp_path):
    part = write_propagated(tmp_path / "p.json", [0.0, 0.125, 0.25])
    write_member(part, "/000001.png", np.zeros((64, 48, 3), np.uint8))
    artifacts.write_index(part, "propagated", *read_index(part))
    stderr = stage("concat", part, "--output", tmp_path / "film.mp4", fails=1)
    assert f"p/000001.png is 48x64, and {part} says 64x48: make it again" in stderr


def read_index(index):
    """The fields of an index and the suffixes of its members."""
    head = json.loads(index.read_text())
    return head["fields"], list(head["members"])


@pytest.mark.parametrize(
    ("times", "size", "message"),
    [
        ([], (64, 48), "hold no frames"),
        ([0.0, 0.2, 0.1], (64, 48), "has a frame at 0.1 s, and the one before it is at 0.2 s"),
        ([0.0, 0.0, 0.5], (64, 48), "has a frame at 0.0 s, and the one before it is at 0.0 s"),
        ([0.0, 0.1, 1e9], (64, 48), "has a frame at 1000000000.0 s"),
        ([0.0, 0.1], (65, 48), "is 65x48, and H.264 needs even sides"),
    ],
)
def test_concat_of_unsuitable_parts_fails_alone(tmp_path, times, size, message):
    rows = [
        {"clips": [str(write_propagated(tmp_path / f"{name}0.json", *arguments))], "output": str(tmp_path / f"{name}.mp4")}
        for name, arguments in {"bad": (times, size), "good": ([0.0, 0.125, 0.25],)}.items()
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stderr = stage("concat", "--manifest", tmp_path / "manifest.jsonl", fails=1)
    assert message in stderr and "bug" not in stderr
    assert artifacts.read(tmp_path / "good.mp4", ("film",)).fields["num_frames"] == 3
