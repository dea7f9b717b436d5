"""Text of people and other programs: one form, and one sentence for what cannot be read."""

import re

import pytest

from stages.runtime.errors import UsageError
from stages.runtime.text import read_csv, read_jsonl, read_lines, read_text, read_yaml


def refused(read, path):
    """What `read` says of a file that it refuses: one short line that names the file."""
    with pytest.raises(UsageError) as caught:
        list(read(path) or ())
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 400
    return said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2])
def test_lines_end_at_the_line_ends_of_every_system_and_nowhere_else(tmp_path, end, mark):
    lines = ["a\u2028b", "c\u2029d\u0085e", "f\x0bg\x0ch\x1ci", "海边的风筝"]
    path = tmp_path / "a.txt"
    path.write_bytes(mark + (end.join(lines) + end).encode())
    assert read_text(path) == "\n".join(lines) + "\n"
    assert read_lines(path) == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\nb".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("a\nb".encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
        ("caf\xe9".encode("latin-1"), r"is not UTF-8 text \(byte 4\): save it as UTF-8"),
        (b"one\ntwo\0three", "line 2 of .* has a NUL character"),
    ],
    ids=["UTF-16", "UTF-32", "Latin-1", "NUL"],
)
@pytest.mark.parametrize("read", [read_text, read_lines, read_jsonl, read_csv, read_yaml])
def test_what_is_no_text_is_named(tmp_path, read, data, message):
    path = tmp_path / "a"
    path.write_bytes(data)
    assert re.search(message, refused(read, path))


@pytest.mark.parametrize("read", [read_text, read_lines, read_jsonl, read_csv, read_yaml])
def test_what_is_not_there_or_no_file_is_named(tmp_path, read):
    assert "does not exist" in refused(read, tmp_path / "none")
    assert "is no file" in refused(read, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"prompt": "a red ring \ud83d on black"}', r"half a character \(\\ud83d\): remove it, or write the character"),
        (r'{"prompt": {"deep": ["\udc00"]}}', "half a character"),
        (r'{"\ud83d": 1}', "half a character"),
        (r'{"prompt": "\u0000"}', "a NUL character"),
        ('{"id": "a", "id": "b"}', "has the key 'id' twice"),
        ('{"steps": NaN}', "has NaN, which is no number of JSON"),
        ('{"steps": -Infinity}', "has -Infinity, which is no number"),
        ('{"steps": 1e999}', "has the number 1e999, which is infinite"),
        ('{"seed": ' + "9" * 5000 + "}", "a number of more than 4300 digits"),
        ('{"a": ' * 100_000, "nested too deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested too deep"),
        ('{"a": 1', "is not JSON"),
        ("[1]", 'is not an object: write one object per line, such as {"video"'),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_means_nothing_certain_names_its_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "fine", "prompt": "\\ud83d\\ude00"}\n\n' + line + "\n")
    said = refused(read_jsonl, path)
    assert said.startswith(f"line 3 of {path} ") and re.search(message, said)


def test_files_that_were_joined_with_their_marks_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a"}\n\xef\xbb\xbf{"id": "b"}\n')
    assert [row for _, row in read_jsonl(tmp_path / "a.jsonl")] == [{"id": "a"}, {"id": "b"}]


def test_an_emoji_of_two_escapes_is_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"prompt": "\ud83d\ude00"}')
    assert [row for _, row in read_jsonl(tmp_path / "a.jsonl")] == [{"prompt": "😀"}]


CSV = [
    ("video,prompt\na.mp4,a cat\n", [{"video": "a.mp4", "prompt": "a cat"}]),
    ("video;prompt\na.mp4;a cat, asleep\n", [{"video": "a.mp4", "prompt": "a cat, asleep"}]),
    ("video\tprompt\na.mp4\ta cat\n", [{"video": "a.mp4", "prompt": "a cat"}]),
    (" video , prompt\na.mp4, a cat\n", [{"video": "a.mp4", "prompt": "a cat"}]),
    ('video,prompt\na.mp4, "a ""big"" cat"\n', [{"video": "a.mp4", "prompt": 'a "big" cat'}]),
    ('video,prompt\r\na.mp4,"one\r\ntwo"\r\n', [{"video": "a.mp4", "prompt": "one\ntwo"}]),
    ("video,prompt,,\na.mp4,a cat,,\n,,,\n , ,,\n\nb.mp4,,,\n", [{"video": "a.mp4", "prompt": "a cat"}, {"video": "b.mp4"}]),
    ("sep=;\nvideo;prompt\na.mp4;a cat, asleep\n", [{"video": "a.mp4", "prompt": "a cat, asleep"}]),
    ('"sep=|"\r\nvideo|prompt\r\na.mp4|a cat\r\n', [{"video": "a.mp4", "prompt": "a cat"}]),
    ("sep=,\nvideo\na.mp4\n", [{"video": "a.mp4"}]),
    ("\ufeffvideo,prompt\na.mp4,a cat\n\ufeffb.mp4,\n", [{"video": "a.mp4", "prompt": "a cat"}, {"video": "b.mp4"}]),
    ("\n\nvideo,prompt\na.mp4,say \u2028 it\n", [{"video": "a.mp4", "prompt": "say \u2028 it"}]),
]


@pytest.mark.parametrize(("text", "rows"), CSV, ids=[repr(text[:30]) for text, _ in CSV])
def test_csv_as_spreadsheets_and_people_write_it(tmp_path, text, rows):
    path = tmp_path / "a.csv"
    path.write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert [row for _, row in read_csv(path)] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('video,prompt\na.mp4,a\nb.mp4,"a red ring\nc.mp4,x\nd.mp4,y\n', "row 3 of .* opens a quote that is never closed"),
        ('video,prompt\na.mp4,"a "big" cat"\n', "row 2 of .* has text behind the closing quote of a cell"),
        ("video,prompt\na.mp4," + "x" * 140_000, "row 2 of .* has a cell of more than 131072 characters"),
        ("video,prompt\na.mp4\n", r"row 2 of .* has another number of cells than the header \(1, not 2\)"),
        ("video,prompt\na.mp4,a cat, asleep\n", r"row 2 of .* has another number of cells than the header \(3, not 2\)"),
        ("video,prompt,video\na,b,c\n", "has two columns video"),
        ("video,\na.mp4,a cat\n", "row 2 of .* has 'a cat' in a column without a name"),
    ],
    ids=lambda value: value[:30],
)
def test_csv_that_is_torn_names_its_row(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert re.search(message, refused(read_csv, path))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGED = "a0: &a0 {k: 1, l: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("[" * 10_000 + "]" * 10_000, "nested too deep"),
        ('{"a": ' * 100_000, "nested too deep"),
        ("\n".join(" " * n + "a:" for n in range(2000)), "nested too deep"),
        ("- " * 10_000, "nested too deep"),
        (LAUGHS, "stands for more than 1000000 values"),
        (MERGED, "merged tables grow too large"),
        ("runs: 1\nmodels: 2\nruns: 3\n", r"line 1 of .*the key 'runs' stands twice"),
        ('{"runs": 1, "runs": 3}', "has the key 'runs' twice"),
        ("runs:\n\ta: 1\n", "line 2 of .*: indent with spaces, not tabs"),
        ("runs: [1", "is not YAML"),
        ("runs: 2026-13-45", "a value that cannot be read .*: write it in quotes"),
        ("seed: " + "9" * 5000, "a value that cannot be read"),
        ("? [a, b]\n: c", "is not YAML"),
        ("a: !!python/object:os.system x", "is not YAML"),
        (r'a: "\x00"', "NUL"),
        ('{"a": NaN}', "has NaN"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_would_crash_or_mislead_is_named(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert re.search(message, refused(read_yaml, path), re.S)


def test_yaml_that_repeats_itself_by_anchors_and_merges_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nmine: {<<: *b, x: 3}\nlist: [*b, *b]\n")
    read = read_yaml(tmp_path / "a.yaml")
    assert read["mine"] == {"x": 3, "y": 2} and read["list"] == [{"x": 1, "y": 2}] * 2


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("# nothing\n", None), ('{\t"a": [1]}', {"a": [1]}), ("{a: b}", {"a": "b"})]
)
def test_yaml_may_be_empty_or_json(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize("number", ["010", "-017", "1:30", "1:30.5"])
def test_a_number_that_yaml_takes_for_another_is_refused(tmp_path, number):
    (tmp_path / "a.yaml").write_text(f"steps: {number}\n")
    with pytest.raises(UsageError, match=f"line 1 of .*{number} is another number to YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_other_numbers_of_yaml_are_as_they_look(tmp_path):
    (tmp_path / "a.yaml").write_text("[0, 10, -3, 0.5, 1.5e-3, '010', 0x10, 1_000]")
    assert read_yaml(tmp_path / "a.yaml") == [0, 10, -3, 0.5, 1.5e-3, "010", 16, 1000]
