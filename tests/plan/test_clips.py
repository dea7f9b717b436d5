"""Clips from a list, a file, a folder; ids that are safe in paths and differ."""

import re

import pytest

from stages.plan.clips import ID, read_clips, slug
from stages.runtime.errors import UsageError


def test_a_folder_of_masks(tmp_path):
    for name in ("videos/a.mp4", "videos/b.mp4", "masks/a.mkv", "masks/c.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = {"videos": str(tmp_path / "videos"), "masks": str(tmp_path / "masks")}
    rows, warnings = read_clips(source, "run x")
    assert [row.get("masks") for row in rows] == [str(tmp_path / "masks/a.mkv"), None]
    assert warnings == [f"b.mp4 has no masks in {tmp_path / 'masks'}"]
    with pytest.raises(UsageError, match="the folder of masks .* does not exist: mend the path"):
        read_clips({**source, "masks": str(tmp_path / "none")}, "run x")


def test_a_folder_of_videos_and_a_folder_of_prompts(tmp_path):
    (tmp_path / "p").mkdir()
    for name in ("b.MP4", "a.mkv", "c.avi", "d.mov", "notes.txt"):
        (tmp_path / name).touch()
    for name, text in (("a", "first\n"), ("c", "third"), ("d", " ")):
        (tmp_path / "p" / f"{name}.txt").write_text(text)
    source = {"videos": str(tmp_path), "prompts": str(tmp_path / "p")}
    rows, warnings = read_clips(source, "run x")
    assert [(row["id"], row.get("prompt")) for row in rows] == [("a", "first"), ("b", None), ("c", "third"), ("d", None)]
    assert len(warnings) == 2 and "b.MP4 has no prompt" in warnings[0] and "will be captioned" in warnings[0]
    rows, warnings = read_clips({**source, "missing_prompt": "skip"}, "run x")
    assert [row["id"] for row in rows] == ["a", "c"]
    assert "is skipped" in warnings[1]


def test_jsonl_and_csv_say_the_same(tmp_path):
    (tmp_path / "c.jsonl").write_text(
        '{"video": "v/海滩.mp4", "prompt": "waves, \\"high\\""}\n\n{"id": "two", "video": "w.mp4"}\n'
    )
    (tmp_path / "c.csv").write_text('id,video,prompt\n,v/海滩.mp4,"waves, ""high"""\ntwo,w.mp4,\n')
    assert read_clips(str(tmp_path / "c.jsonl"), "")[0] == read_clips(str(tmp_path / "c.csv"), "")[0]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("beach", "beach"),
        ("my clip (1)", "my-clip-1"),
        ("海滩", r"clip-[0-9a-f]{6}"),
        ("café", r"cafe-[0-9a-f]{6}"),
        ("-rf", "rf"),
        ("..", r"clip-[0-9a-f]{6}"),
        ("x" * 200, r"x{57}-[0-9a-f]{6}"),
        ("a;$(rm)\n'b'", "a-rm-b"),
    ],
)
def test_slugs_are_ids(name, pattern):
    made = slug(name)
    assert re.fullmatch(pattern, made)
    assert ID.fullmatch(made)


def test_names_that_differ_in_lost_letters_stay_apart():
    assert slug("海滩") != slug("海洋")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"vido": "x", "steps": 2}], "clip 1 of run x has no video, no picture, no prompt and no id: it has vido, steps"),
        ([{"video": "caf\udce9.mp4"}], "the name of the video of clip 1 of run x is not UTF-8: rename the file"),
        ([{"id": "a/b", "video": "x"}], "the id of clip 1 of run x is 'a/b'"),
        ([{"id": "..", "video": "x"}], "is '..'"),
        ([{"id": "plan", "video": "x"}], "is 'plan'"),
        ([{"video": "a.mp4"}, {"video": "b/a.mkv"}], "clip 2 of run x has the id a, as clip 1 of run x has"),
    ],
)
def test_bad_and_doubled_ids_are_refused(rows, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        read_clips(rows, "run x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.jsonl", '{"video": "a.mp4"}\nnonsense\n', "line 2 of .* is not JSON"),
        ("c.jsonl", "[]\n", "line 1 of .* is not an object"),
        ("c.csv", "id,video\na\n", "row 2 of .* has another number of cells"),
        ("c.md", "", "it must be .jsonl, .csv or .txt"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        read_clips(str(tmp_path / name), "run x")


@pytest.mark.parametrize("source", ["missing.jsonl", {"videos": "missing"}])
def test_what_is_missing_is_named(source):
    with pytest.raises(UsageError, match="missing.* does not exist"):
        read_clips(source, "run x")


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 text \(byte 4\): save it as UTF-8"):
        read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")


def test_line_ends_and_marks_of_other_systems_are_no_part_of_a_prompt(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    rows, _ = read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")
    assert rows[0]["prompt"] == "one\ntwo"


def test_a_text_file_is_a_prompt_per_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring\n\n  海边的风筝  \n")
    rows, _ = read_clips(str(tmp_path / "prompts.txt"), "run x")
    assert [row["prompt"] for row in rows] == ["a red ring", "海边的风筝"]
    assert rows[0]["id"] == "001-a-red-ring" and rows[1]["id"].startswith("003-")
