"""Unusable clips are reported before a training begins, and a training resumes wherever its clips are."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from stages.families import FAMILIES
from stages.families.shared.training.clips import identity, usable_pairs
from stages.families.shared.training.data import TextVideoDataset
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from tests import zoo
from tests.commands import stage, train
from tests.conftest import TINY_TEXT2VIDEO
from tests.families.shared.training.test_data import COLORS, write_clip

CONFIG = {**TINY_TEXT2VIDEO, "augment": False, "validation_share": 0.25, "max_steps": 2, "save_every": 1}


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        write_clip(tmp_path / "data", name, COLORS * 2)
    return tmp_path / "data"


def put(folder, name, make, caption="a caption"):
    """Put a video of the zoo and its caption into a data folder."""
    video = make(folder.parent)
    video.rename((folder / "videos" / name).with_suffix(video.suffix))
    (folder / "captions" / f"{name}.txt").write_text(caption)


def write_file(folder, content):
    write_clip(folder, "bad", COLORS)
    (folder / "videos/bad.mp4").write_bytes(content)


def without_caption(folder):
    write_clip(folder, "bad", COLORS)
    (folder / "captions/bad.txt").unlink()


def image(folder, suffix):
    write_clip(folder, "bad", COLORS)
    (folder / "videos/bad.mp4").unlink()
    shutil.copy("docs/images/v2v.png", folder / f"videos/bad{suffix}")


BAD = {
    "undecodable": (lambda folder: write_file(folder, b"x" * 999), "bad.mp4 (is not a readable video"),
    "empty": (lambda folder: write_file(folder, b""), "bad.mp4 (is empty)"),
    "without its index": (lambda folder: put(folder, "bad", zoo.no_index), "bad.mp4 (is not a readable video"),
    "truncated": (lambda folder: put(folder, "bad", zoo.truncated), "bad.mp4 (it is truncated after 1.4 of 2.1 seconds)"),
    "sound alone": (lambda folder: put(folder, "bad", zoo.sound_only), "bad.mp4 (has no video stream (sound only))"),
    "no frames": (lambda folder: put(folder, "bad", zoo.no_frames), "bad.mp4 ("),
    "without a caption": (without_caption, "bad.mp4 (it has no caption bad.txt)"),
    "an empty caption": (lambda folder: write_clip(folder, "bad", COLORS, text=" "), "bad.mp4 (its caption is empty)"),
    "an image": (lambda folder: image(folder, ".png"), "bad.png (it is an image and no video)"),
    "an image by another name": (lambda folder: image(folder, ".mp4"), "bad.mp4 (is not a readable video"),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_a_bad_clip_is_reported_with_its_reason_or_left_out(damage, message, folder, capsys):
    damage(folder)
    pairs = TextVideoDataset(folder).pairs
    with pytest.raises(UsageError) as raised:
        usable_pairs(folder, pairs, skip=False)
    assert str(raised.value).startswith(f"1 clips of {folder} cannot be trained on: {message}")
    assert str(raised.value).endswith("mend them, or leave them out with --skip-bad-clips")
    assert [video.name for video, _ in usable_pairs(folder, pairs, skip=True)] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "left_out" and Path(json.loads(line)["clip"]).stem == "bad"


@pytest.mark.parametrize(
    "make", [zoo.plain, zoo.varying_rate, zoo.with_sound, zoo.ten_bit, zoo.odd_size, lambda folder: zoo.rotated(folder, 90)]
)
def test_odd_but_valid_clips_are_used(make, folder):
    put(folder, "odd", make)
    (folder / "videos/._a.mp4").write_bytes(b"of another system")
    (folder / "videos/notes.md").write_text("no clip")
    assert len(usable_pairs(folder, TextVideoDataset(folder).pairs[-1:], skip=False)) == 1


def test_many_bad_clips_are_counted_and_the_first_named(folder, tmp_path):
    for number in range(9):
        write_clip(folder, f"bad{number}", COLORS, text="")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": str(folder)}))
    stderr = train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", fails=2)
    assert f"error: 9 clips of {folder} cannot be trained on: bad0.mp4 (its caption is empty), bad1.mp4 (" in stderr
    assert "bad4.mp4 (its caption is empty) and 4 more: mend them, or leave them out with --skip-bad-clips" in stderr
    assert "bad5" not in stderr and not (tmp_path / "t").exists()
    stderr = train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", "--skip-bad-clips")
    assert stderr.count('"left_out"') == 9 and (tmp_path / "t/training.json").is_file()


def test_a_folder_with_only_bad_clips_is_refused(tmp_path):
    write_clip(tmp_path, "a", COLORS, text="")
    with pytest.raises(UsageError, match="1 clips of .* cannot be trained on: .*: mend them$"):
        usable_pairs(tmp_path, TextVideoDataset(tmp_path).pairs, skip=True)


# -------------------------------------------------------------------------------------------------------------- resume


def begin_training(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", "--data", folder)


def continue_training(tmp_path, data, output, **more):
    stderr = train(
        "text2video", "--config", tmp_path / "config.yaml", "--output", output, "--data", data, "--max-steps", 3, **more
    )
    return stderr if more else '"resumed", "step": 2' in stderr


@pytest.mark.parametrize(
    "change", ["relative", "slash", "link", "home", "another working folder", "moved", "a link to the training"]
)
def test_a_training_resumes_however_its_paths_are_written(change, folder, tmp_path, monkeypatch):
    begin_training(folder, tmp_path)
    data, output = folder, tmp_path / "t"
    if change == "relative":
        monkeypatch.chdir(tmp_path)
        data, output = "data", "./t/../t"
    elif change == "slash":
        data, output = f"{folder}/", f"{output}/"
    elif change == "link":
        (tmp_path / "other").symlink_to(folder)
        data = tmp_path / "other"
    elif change == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        data, output = "~/data", "~/t"
    elif change == "another working folder":
        (tmp_path / "deep/er").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "deep/er")
        data, output = "../../data", "../../t"
    elif change == "moved":
        data, output = folder.rename(tmp_path / "data2"), output.rename(tmp_path / "t2")
    else:
        (tmp_path / "link").symlink_to(output)
        output = tmp_path / "link"
    assert continue_training(tmp_path, data, output)
    if change == "home":
        assert not Path("~").exists()


def test_a_training_does_not_resume_with_other_clips(folder, tmp_path):
    begin_training(folder, tmp_path)
    write_clip(folder, "e", COLORS)
    stderr = continue_training(tmp_path, folder, tmp_path / "t", fails=2)
    assert f"error: the clips of {folder} are no longer those that the training in {tmp_path}/t was begun with" in stderr
    other = folder.rename(tmp_path / "other")
    stderr = continue_training(tmp_path, other, tmp_path / "t", fails=2)
    assert f"data is '{other}' and the training in {tmp_path}/t was begun with '{folder}'" in stderr


def test_files_that_are_no_clips_do_not_stop_a_training(folder):
    before = identity(str(folder))
    (folder / "videos/.DS_Store").write_bytes(b"x")
    (folder / "captions/readme.md").write_text("x")
    assert identity(str(folder)) == before


def test_a_clip_name_that_is_not_utf8_is_reported_before_the_training(folder):
    for part, ending in (("videos", ".mp4"), ("captions", ".txt")):
        os.rename(folder / part / f"a{ending}", os.fsencode(folder / part) + b"/\xff" + ending.encode())
    pairs = TextVideoDataset(folder).pairs
    assert len(usable_pairs(folder, pairs, skip=True)) == 3 and identity(str(folder))
    with pytest.raises(UsageError, match="its name is not UTF-8") as raised:
        usable_pairs(folder, pairs, skip=False)
    str(raised.value).encode()


def test_clips_are_identified_by_their_names_and_sizes(folder, tmp_path):
    same = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert identity(str(folder)) == identity(str(same)) == identity(f"{os.path.relpath(folder)}/")
    (same / "captions/a.txt").write_text("another caption")
    assert identity(str(folder)) != identity(str(same))
    assert identity("shapes") == "shapes"


# ------------------------------------------------------------------------------------------------------------ settings


def test_a_trained_model_runs_by_its_folder_alone(tiny_text2video, tmp_path):
    folder = tiny_text2video / "model"
    model = find_model(str(folder), None, FAMILIES)
    options = {"dtype": "float32", "num_inference_steps": 2, "guidance_scale": 2.5}
    assert (model.family, model.all_options) == ("text2video", options)
    stage("encode", "-o", tmp_path / "e.safetensors", "-m", folder, "--prompt", "a red ring")
    stage("generate", tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors")
    stage("decode", tmp_path / "l.safetensors", "-o", tmp_path / "c.json")


def test_a_training_keeps_the_settings_of_the_model_it_starts_from(tiny_text2video, tmp_path):
    start = Path(shutil.copytree(tiny_text2video / "model", tmp_path / "start"))
    settings = json.loads((start / "kinemake.json").read_text())
    settings["options"] |= {"fps": 12.0, "guidance_scale": 9.0}
    (start / "kinemake.json").write_text(json.dumps(settings))
    config = {**TINY_TEXT2VIDEO, "architecture": {}, "start_from": str(start), "max_steps": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t")
    options = find_model(str(tmp_path / "t/model"), None, FAMILIES).options
    assert (options["fps"], options["guidance_scale"]) == (12.0, 2.5)


def test_a_trained_model_has_the_permissions_of_the_umask(tiny_text2video, tmp_path):
    """The files of diffusers are readable by the owner alone, but other users are to use the model too."""
    (tmp_path / "any").touch()
    files = [path for path in (tiny_text2video / "model").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode for path in files} == {(tmp_path / "any").stat().st_mode}
