"""Clips from a list, a file or a folder, with unique ids that are safe in paths."""

import json
import re

import pytest
import yaml

from stages.plan.clips import read_clips
from stages.plan.names import distinct_ids, is_id, slug
from stages.runtime.errors import UsageError


def test_read_clips_pairs_a_folder_of_masks_by_name(tmp_path):
    for name in ("videos/a.mp4", "videos/b.mp4", "masks/a.mkv", "masks/c.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = {"videos": str(tmp_path / "videos"), "masks": str(tmp_path / "masks")}
    rows, warnings = read_clips(source, "run x")
    assert [row.get("masks") for row in rows] == [str(tmp_path / "masks/a.mkv"), None]
    assert warnings == [f"b.mp4 has no masks in {tmp_path / 'masks'}"]
    with pytest.raises(UsageError, match="the folder of masks .* does not exist: mend the path"):
        read_clips({**source, "masks": str(tmp_path / "none")}, "run x")


def test_read_clips_pairs_a_folder_of_videos_with_a_folder_of_prompts(tmp_path):
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


def test_read_clips_gives_the_same_rows_for_jsonl_and_csv(tmp_path):
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
        ("海滩", "海滩"),
        ("汽车转弯 (1)", "汽车转弯-1"),
        ("cafe\u0301", "caf\u00e9"),
        ("हिन्दी", "हिन्दी"),
        ("\u0301a", "a"),
        ("🚗", r"clip-[0-9a-f]{6}"),
        ("steps", r"steps-[0-9a-f]{6}"),
        ("车" * 60, r"车{37}-[0-9a-f]{6}"),
        ("-rf", "rf"),
        ("..", r"clip-[0-9a-f]{6}"),
        ("x" * 200, r"x{57}-[0-9a-f]{6}"),
        ("a;$(rm)\n'b'", "a-rm-b"),
    ],
)
def test_a_slug_is_a_valid_clip_id(name, pattern):
    identifier = slug(name)
    assert re.fullmatch(pattern, identifier)
    assert is_id(identifier)


def test_slugs_of_names_that_differ_in_lost_letters_differ():
    assert slug("海滩") != slug("海洋") and slug("x" * 100) != slug("x" * 101)


def test_distinct_ids_of_files_with_one_stem_have_their_suffixes():
    assert distinct_ids(["a.mov", "a.mp4", "b.mp4"]) == {"a.mov": "a-mov", "a.mp4": "a-mp4", "b.mp4": "b"}
    ids = distinct_ids(["a b.mp4", "a-b.mp4", "a.b.mp4", "c.mp4", "c.mov", "c-mov.avi"])
    assert len(set(ids.values())) == 6 and all(map(is_id, ids.values()))
    assert ids["a.b.mp4"] == "a.b" and ids["c.mp4"] == "c-mp4"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"vido": "x", "steps": 2}], "clip 1 of run x has no video, no image, no prompt and no id: it has vido, steps"),
        ([{"video": "caf\udce9.mp4"}], "the name of the video of clip 1 of run x is not UTF-8: rename the file"),
        ([{"prompt": 1984}], 'the prompt of clip 1 of run x is 1984: it must be text: write it in quotes, such as "1984"'),
        ([{"id": "a", "video": True}], "the video of clip 1 of run x is True: it must be text"),
        ([{"id": "a", "prompt": ["p"]}], "the prompt of clip 1 of run x is ['p']: it must be text"),
        ([{"id": "a/b", "video": "x"}], "the id of clip 1 of run x is 'a/b'"),
        ([{"id": "..", "video": "x"}], "is '..'"),
        ([{"id": "plan", "video": "x"}], "is 'plan'"),
        ([{"video": "a.mp4"}, {"video": "b/a.mkv"}], "clip 2 of run x has the id a, as clip 1 of run x has"),
    ],
)
def test_invalid_and_duplicate_clip_rows_are_refused(rows, message):
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
def test_a_damaged_list_of_clips_names_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        read_clips(str(tmp_path / name), "run x")


def test_a_folder_given_as_a_list_of_clips_names_the_key_for_folders(tmp_path):
    with pytest.raises(UsageError, match="is a folder: write clips: {videos: FOLDER}"):
        read_clips(str(tmp_path), "run x")


@pytest.mark.parametrize("source", ["missing.jsonl", {"videos": "missing"}])
def test_a_missing_list_or_folder_of_clips_is_named(source):
    with pytest.raises(UsageError, match="missing.* does not exist"):
        read_clips(source, "run x")


def test_a_prompt_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 text \(byte 4\): save it as UTF-8"):
        read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")


def test_byte_order_marks_and_carriage_returns_do_not_enter_a_prompt(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    rows, _ = read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")
    assert rows[0]["prompt"] == "one\ntwo"


def test_a_text_file_has_a_prompt_per_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ring\n\n  海边的风筝  \n")
    rows, _ = read_clips(str(tmp_path / "prompts.txt"), "run x")
    assert [row["prompt"] for row in rows] == ["a red ring", "海边的风筝"]
    assert rows[0]["id"] == "001-a-red-ring" and rows[1]["id"].startswith("003-")


def test_read_clips_ignores_hidden_files_and_folders(tmp_path):
    """macOS and other systems leave such files on every disk that they open."""
    for name in ("a.MP4", "._a.mp4", ".b.mp4", "folder.mp4/inner.mp4", ".hidden.mp4/inner.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.TXT").write_text("a prompt")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7")
    rows, warnings = read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")
    assert [(row["id"], row["prompt"]) for row in rows] == [("a", "a prompt")]
    assert warnings == []


@pytest.mark.parametrize(("key", "supported", "unsupported"), [("videos", "a.mp4", "b.webm"), ("images", "a.png", "b.WebP")])
def test_unsupported_clip_files_are_reported_once(tmp_path, key, supported, unsupported):
    for name in (supported, unsupported, f"c{unsupported[1:]}", "d.m4v", "notes.md", "a.txt"):
        (tmp_path / name).write_text("a prompt")
    rows, (warning,) = read_clips({key: str(tmp_path)}, "run x")
    assert [row["id"] for row in rows] == ["a"]
    assert warning.startswith(
        f"3 files of {tmp_path} are left out, the first is {unsupported} (endings .m4v, {unsupported[1:].lower()});"
    )
    assert "convert them, or name them in a list of clips" in warning


def test_two_prompt_files_for_one_video_are_refused(tmp_path):
    for name in ("a.mp4", "a.txt", "a.TXT"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"a.txt and a.TXT are both prompts for a: remove one of them"):
        read_clips({"videos": str(tmp_path), "prompts": str(tmp_path)}, "run x")


@pytest.mark.parametrize("name", ["c.CSV", "c.JsonL", "c.TXT"])
def test_suffixes_of_clip_lists_may_be_upper_or_lower_case(tmp_path, name):
    text = {".csv": "prompt\na cat\n", ".jsonl": '{"prompt": "a cat"}\n', ".txt": "a cat\n"}[
        (tmp_path / name).suffix.lower()
    ]
    (tmp_path / name).write_text(text)
    assert [row["prompt"] for row in read_clips(str(tmp_path / name), "run x")[0]] == ["a cat"]


def test_a_unicode_line_separator_does_not_split_a_prompt(tmp_path):
    text = "a red ring\u2028on a black background\u0085that glides"
    (tmp_path / "c.txt").write_text(text + "\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n")
    for name in ("c.txt", "c.jsonl"):
        assert [row["prompt"] for row in read_clips(str(tmp_path / name), "run x")[0]] == [text]
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").touch()
    assert read_clips({"videos": str(tmp_path / "v"), "prompts": str(tmp_path / "c.txt")}, "x")[0][0]["prompt"] == text


def test_null_and_blank_cells_of_a_clip_are_absent(tmp_path):
    row = {"id": None, "video": "a.mp4", "prompt": " ", "image": "", "steps": None, "negative_prompt": ""}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    expected = [{"video": "a.mp4", "id": "a", "negative_prompt": ""}]  # an empty text is a value of that option
    assert read_clips(str(tmp_path / "c.jsonl"), "run x")[0] == expected
    assert read_clips([row], "run x")[0] == expected


@pytest.mark.parametrize("text", ["", "\n\n", "id,video\n", "id,video\n,\n,,\n"])
@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.txt"])
def test_an_empty_list_of_clips_is_an_error(tmp_path, name, text):
    if "," in text and name != "c.csv":
        return
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} has no clips"):
        read_clips(str(tmp_path / name), "run x")


@pytest.mark.parametrize(
    ("written", "quoted"),
    [("007", "7"), ("yes", "yes"), ("off", "no"), ("1.50", "1.5"), ("2026-01-02", "2026-01-02"), ("0x10", "16")],
)
def test_a_clip_id_that_yaml_converted_is_reported_with_quotes(written, quoted):
    row = yaml.safe_load(f"{{id: {written}, video: a.mp4}}")
    with pytest.raises(UsageError, match=f'the id of clip 1 of run x is .*: write it in quotes, such as "{quoted}"'):
        read_clips([row], "run x")


def test_a_number_is_a_clip_id_where_no_digit_is_lost(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": 7, "video": "a.mp4"}\n')
    (tmp_path / "c.csv").write_text("id,video\n007,a.mp4\n")
    assert [read_clips(str(tmp_path / name), "x")[0][0]["id"] for name in ("c.jsonl", "c.csv")] == ["7", "007"]


def test_clip_paths_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("v/a.mp4", "p/a.txt", "m/a.mkv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("a prompt")
    rows, _ = read_clips({"videos": "~/v", "prompts": "~/p", "masks": "~/m"}, "x")
    assert rows == [
        {"video": f"{tmp_path}/v/a.mp4", "id": "a", "prompt": "a prompt", "masks": f"{tmp_path}/m/a.mkv"},
    ]
    (tmp_path / "c.csv").write_text("video_path\n~/v/a.mp4\n")
    assert read_clips("~/c.csv", "x")[0] == [{"id": "a", "video": f"{tmp_path}/v/a.mp4"}]


@pytest.mark.parametrize(
    "pair", [{"video": "a.mp4", "video_path": "b.mp4"}, {"prompt": "p", "prompts": ["q"], "video": "a.mp4"}]
)
def test_a_clip_row_with_two_aliases_of_one_key_is_refused(pair):
    with pytest.raises(UsageError, match="clip 1 of here has both"):
        read_clips([pair], "here")


def test_blanks_around_a_csv_cell_are_removed(tmp_path):
    (tmp_path / "a.csv").write_text("video , prompt\na.mp4 , a red ring \n")
    ((row,), _) = read_clips(str(tmp_path / "a.csv"), "here")
    assert (row["video"], row["prompt"]) == ("a.mp4", "a red ring")
