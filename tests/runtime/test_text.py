"""Text files from users and other programs: one form, and one sentence for a file that cannot be read."""

import re

import pytest

from stages.runtime.errors import UsageError
from stages.runtime.text import read_csv, read_jsonl, read_lines, read_text, read_yaml


def refusal(read, path):
    """The error with which `read` refuses a file: one short line that names the file."""
    with pytest.raises(UsageError) as caught:
        list(read(path) or ())
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2])
def test_read_lines_splits_only_at_line_ends_of_any_system(tmp_path, end, mark):
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
def test_readers_name_a_file_that_is_not_utf8(tmp_path, read, data, message):
    path = tmp_path / "a"
    path.write_bytes(data)
    assert re.search(message, refusal(read, path))


@pytest.mark.parametrize("read", [read_text, read_lines, read_jsonl, read_csv, read_yaml])
def test_readers_name_a_missing_file_and_a_folder(tmp_path, read):
    assert "does not exist" in refusal(read, tmp_path / "none")
    assert "is no file" in refusal(read, tmp_path)


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
def test_read_jsonl_names_the_line_of_ambiguous_json(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "fine", "prompt": "\\ud83d\\ude00"}\n\n' + line + "\n")
    sentence = refusal(read_jsonl, path)
    assert sentence.startswith(f"line 3 of {path} ") and re.search(message, sentence)


def test_read_jsonl_skips_byte_order_marks_of_joined_files(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a"}\n\xef\xbb\xbf{"id": "b"}\n')
    assert [row for _, row in read_jsonl(tmp_path / "a.jsonl")] == [{"id": "a"}, {"id": "b"}]


def test_read_jsonl_joins_surrogate_escapes(tmp_path):
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
def test_read_csv_takes_what_spreadsheets_and_people_write(tmp_path, text, rows):
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
def test_read_csv_names_the_row_of_damaged_csv(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert re.search(message, refusal(read_csv, path))


BILLION_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
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
        (BILLION_LAUGHS, "stands for more than 1000000 values"),
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
def test_read_yaml_names_text_that_would_crash_or_mislead(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert re.search(message, refusal(read_yaml, path), re.S)


def test_read_yaml_takes_anchors_and_merges(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nmine: {<<: *b, x: 3}\nlist: [*b, *b]\n")
    values = read_yaml(tmp_path / "a.yaml")
    assert values["mine"] == {"x": 3, "y": 2} and values["list"] == [{"x": 1, "y": 2}] * 2


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("# nothing\n", None), ('{\t"a": [1]}', {"a": [1]}), ("{a: b}", {"a": "b"})]
)
def test_read_yaml_takes_empty_text_and_json(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize("number", ["010", "-017", "1:30", "1:30.5"])
def test_read_yaml_refuses_octal_and_sexagesimal_numbers(tmp_path, number):
    (tmp_path / "a.yaml").write_text(f"steps: {number}\n")
    with pytest.raises(UsageError, match=f"line 1 of .*{number} is another number to YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_read_yaml_reads_other_numbers_as_written(tmp_path):
    (tmp_path / "a.yaml").write_text("[0, 10, -3, 0.5, 1.5e-3, '010', 0x10, 1_000]")
    assert read_yaml(tmp_path / "a.yaml") == [0, 10, -3, 0.5, 1.5e-3, "010", 16, 1000]
