"""Clips that cannot be trained on are told before a training begins; a training is resumed wherever its clips lie."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from stages.models import FAMILIES
from stages.models.shared.training.clips import identity, usable
from stages.models.shared.training.data import TextVideoDataset
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from tests import zoo
from tests.commands import stage, train
from tests.conftest import TINY_TEXT2VIDEO
from tests.models.shared.training.test_data import COLORS, film

CONFIG = {**TINY_TEXT2VIDEO, "augment": False, "validation_share": 0.25, "max_steps": 2, "save_every": 1}


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        film(tmp_path / "data", name, COLORS * 2)
    return tmp_path / "data"


def put(folder, name, make, caption="a caption"):
    """A clip of one of the zoo's files."""
    made = make(folder.parent)
    made.rename((folder / "videos" / name).with_suffix(made.suffix))
    (folder / "captions" / f"{name}.txt").write_text(caption)


def holding(folder, content):
    film(folder, "bad", COLORS)
    (folder / "videos/bad.mp4").write_bytes(content)


def without_caption(folder):
    film(folder, "bad", COLORS)
    (folder / "captions/bad.txt").unlink()


def image(folder, suffix):
    film(folder, "bad", COLORS)
    (folder / "videos/bad.mp4").unlink()
    shutil.copy("docs/images/v2v.png", folder / f"videos/bad{suffix}")


BAD = {
    "undecodable": (lambda folder: holding(folder, b"x" * 999), "bad.mp4 (is not a readable video"),
    "empty": (lambda folder: holding(folder, b""), "bad.mp4 (is empty)"),
    "without its index": (lambda folder: put(folder, "bad", zoo.no_index), "bad.mp4 (is not a readable video"),
    "truncated": (lambda folder: put(folder, "bad", zoo.truncated), "bad.mp4 (it is truncated after 1.4 of 2.1 seconds)"),
    "sound alone": (lambda folder: put(folder, "bad", zoo.sound_only), "bad.mp4 (has no picture (sound only))"),
    "no frames": (lambda folder: put(folder, "bad", zoo.no_frames), "bad.mp4 ("),
    "without a caption": (without_caption, "bad.mp4 (it has no caption bad.txt)"),
    "an empty caption": (lambda folder: film(folder, "bad", COLORS, text=" "), "bad.mp4 (its caption is empty)"),
    "an image": (lambda folder: image(folder, ".png"), "bad.png (it is an image and no video)"),
    "an image by another name": (lambda folder: image(folder, ".mp4"), "bad.mp4 (is not a readable video"),
}


@pytest.mark.parametrize(("spoil", "said"), BAD.values(), ids=BAD)
def test_a_bad_clip_is_told_with_its_reason_or_left_out(spoil, said, folder, capsys):
    spoil(folder)
    pairs = TextVideoDataset(folder).pairs
    with pytest.raises(UsageError) as raised:
        usable(folder, pairs, skip=False)
    assert str(raised.value).startswith(f"1 clips of {folder} cannot be trained on: {said}")
    assert str(raised.value).endswith("mend them, or leave them out with --skip-bad-clips")
    assert [video.name for video, _ in usable(folder, pairs, skip=True)] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "left_out" and Path(json.loads(line)["clip"]).stem == "bad"


@pytest.mark.parametrize(
    "make", [zoo.plain, zoo.varying_rate, zoo.with_sound, zoo.ten_bit, zoo.odd_size, lambda folder: zoo.rotated(folder, 90)]
)
def test_clips_that_only_look_odd_are_good(make, folder):
    put(folder, "odd", make)
    (folder / "videos/._a.mp4").write_bytes(b"of another system")
    (folder / "videos/notes.md").write_text("no clip")
    assert len(usable(folder, TextVideoDataset(folder).pairs[-1:], skip=False)) == 1


def test_many_bad_clips_are_counted_and_the_first_are_named(folder, tmp_path):
    for number in range(9):
        film(folder, f"bad{number}", COLORS, text="")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": str(folder)}))
    said = train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", fails=2)
    assert f"error: 9 clips of {folder} cannot be trained on: bad0.mp4 (its caption is empty), bad1.mp4 (" in said
    assert "bad4.mp4 (its caption is empty) and 4 more: mend them, or leave them out with --skip-bad-clips" in said
    assert "bad5" not in said and not (tmp_path / "t").exists()
    said = train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", "--skip-bad-clips")
    assert said.count('"left_out"') == 9 and (tmp_path / "t/training.json").is_file()


def test_a_folder_of_bad_clips_alone_is_no_training(tmp_path):
    film(tmp_path, "a", COLORS, text="")
    with pytest.raises(UsageError, match="1 clips of .* cannot be trained on: .*: mend them$"):
        usable(tmp_path, TextVideoDataset(tmp_path).pairs, skip=True)


# -------------------------------------------------------------------------------------------------------------- resume


def begun(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", "--data", folder)


def goes_on(tmp_path, data, output, **more):
    said = train(
        "text2video", "--config", tmp_path / "config.yaml", "--output", output, "--data", data, "--max-steps", 3, **more
    )
    return said if more else '"resumed", "step": 2' in said


@pytest.mark.parametrize(
    "way", ["relative", "slash", "link", "home", "another working folder", "moved", "a link to the training"]
)
def test_a_training_goes_on_however_its_places_are_written(way, folder, tmp_path, monkeypatch):
    begun(folder, tmp_path)
    data, output = folder, tmp_path / "t"
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        data, output = "data", "./t/../t"
    elif way == "slash":
        data, output = f"{folder}/", f"{output}/"
    elif way == "link":
        (tmp_path / "other").symlink_to(folder)
        data = tmp_path / "other"
    elif way == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        data, output = "~/data", "~/t"
    elif way == "another working folder":
        (tmp_path / "deep/er").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "deep/er")
        data, output = "../../data", "../../t"
    elif way == "moved":
        data, output = folder.rename(tmp_path / "data2"), output.rename(tmp_path / "t2")
    else:
        (tmp_path / "link").symlink_to(output)
        output = tmp_path / "link"
    assert goes_on(tmp_path, data, output)
    if way == "home":
        assert not Path("~").exists()


def test_a_training_does_not_go_on_with_other_clips(folder, tmp_path):
    begun(folder, tmp_path)
    film(folder, "e", COLORS)
    said = goes_on(tmp_path, folder, tmp_path / "t", fails=2)
    assert f"error: the clips of {folder} are not those any more that the training in {tmp_path}/t was begun with" in said
    other = folder.rename(tmp_path / "other")
    said = goes_on(tmp_path, other, tmp_path / "t", fails=2)
    assert f"data is '{other}' and the training in {tmp_path}/t was begun with '{folder}'" in said


def test_a_file_that_is_no_clip_does_not_end_a_training(folder):
    before = identity(str(folder))
    (folder / "videos/.DS_Store").write_bytes(b"x")
    (folder / "captions/readme.md").write_text("x")
    assert identity(str(folder)) == before


def test_a_name_that_is_not_utf8_is_told_before_the_training(folder):
    for part, ending in (("videos", ".mp4"), ("captions", ".txt")):
        os.rename(folder / part / f"a{ending}", os.fsencode(folder / part) + b"/\xff" + ending.encode())
    pairs = TextVideoDataset(folder).pairs
    assert len(usable(folder, pairs, skip=True)) == 3 and identity(str(folder))
    with pytest.raises(UsageError, match="its name is not UTF-8") as raised:
        usable(folder, pairs, skip=False)
    str(raised.value).encode()


def test_clips_are_known_by_their_names_and_sizes(folder, tmp_path):
    same = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert identity(str(folder)) == identity(str(same)) == identity(f"{os.path.relpath(folder)}/")
    (same / "captions/a.txt").write_text("another caption")
    assert identity(str(folder)) != identity(str(same))
    assert identity("shapes") == "shapes"


# ------------------------------------------------------------------------------------------------------------ settings


def test_a_trained_model_is_run_by_its_folder_alone(tiny_text2video, tmp_path):
    folder = tiny_text2video / "model"
    model = find_model(str(folder), None, FAMILIES)
    options = {"dtype": "float32", "steps": 2, "sampler": "ddim", "guidance_scale": 2.5}
    assert (model.family, model.all_options) == ("text2video", options)
    stage("encode", "-o", tmp_path / "e.safetensors", "-m", folder, "--prompt", "a red ring")
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "c.json")


def test_settings_of_the_model_that_a_training_starts_from_are_kept(tiny_text2video, tmp_path):
    start = Path(shutil.copytree(tiny_text2video / "model", tmp_path / "start"))
    said = json.loads((start / "kinemake.json").read_text())
    said["options"] |= {"fps": 12.0, "guidance_scale": 9.0}
    (start / "kinemake.json").write_text(json.dumps(said))
    config = {**TINY_TEXT2VIDEO, "architecture": {}, "start_from": str(start), "max_steps": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t")
    options = find_model(str(tmp_path / "t/model"), None, FAMILIES).options
    assert (options["fps"], options["guidance_scale"]) == (12.0, 2.5)
