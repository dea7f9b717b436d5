"""Training data: the clips of a folder, their order, and the errors of a folder without clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.families.shared.training.data import EpochBatchSampler, ShapesDataset, TextVideoDataset, collate, datasets
from stages.families.shared.training.options import FolderTrainingOptions
from stages.media.shapes import world
from stages.media.write import VideoWriter
from stages.runtime.errors import UsageError
from tests import zoo

COLORS = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (230, 220, 40)]


def write_clip(folder, name, frames, text="a caption", size=(32, 32), suffix=".mp4"):
    """Write a video of frames, RGB [H, W, 3] or one colour each, and its caption."""
    for part in ("videos", "captions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, height = size
    with VideoWriter(folder / "videos" / f"{name}{suffix}", width, height, 8, crf=4) as video:
        for frame in frames:
            video.write(np.broadcast_to(np.array(frame, np.uint8), (height, width, 3)))
    (folder / "captions" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path, "a", COLORS, "红色的圆环 moving café")
    write_clip(tmp_path, "b", COLORS[:1] * 4, "b")
    return tmp_path


def middle_colours(video) -> np.ndarray:
    """The colour in the middle of each frame of [3, T, H, W], 0 to 255."""
    _, _, height, width = video.shape
    return ((video[:, :, height // 2, width // 2].T.double() + 1) * 127.5).numpy()


# -------------------------------------------------------------------------------------------------------------- folder


def test_dataset_clip_has_its_frames_in_order_and_its_caption(folder):
    item = TextVideoDataset(folder, num_frames=4, frame_size=16, augment=False)[0]
    assert item["video"].shape == (3, 4, 16, 16) and item["video"].dtype == torch.float32
    assert np.abs(middle_colours(item["video"]) - COLORS).max() < 6
    assert (item["text"], item["name"]) == ("红色的圆环 moving café", "a.mp4")


def test_dataset_values_are_in_minus_one_to_one_or_unnormalised_in_zero_to_one(folder):
    write_clip(folder, "c", [(0, 0, 0), (255, 255, 255)])
    common = {"num_frames": 2, "frame_size": 16, "augment": False}
    normalised, unnormalised = (
        TextVideoDataset(folder, normalize=normalize, **common)[2]["video"] for normalize in (True, False)
    )
    assert normalised[:, 0].mean() < -0.98 and normalised[:, 1].mean() > 0.98
    torch.testing.assert_close(normalised, 2 * unnormalised - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".mkv"])
def test_dataset_spreads_frames_over_a_long_video_and_repeats_those_of_a_short_one(tmp_path, suffix):
    """By the rule of InternVL's model cards: the middles of segments of (N - 1) / count frames."""
    ramp = [(8 * i, 8 * i, 8 * i) for i in range(4, 28)]
    write_clip(tmp_path, "long", ramp, suffix=suffix)
    write_clip(tmp_path, "short", ramp[:2], suffix=suffix)
    clips = TextVideoDataset(tmp_path, num_frames=4, frame_size=16, augment=False)
    for clip, count in zip(clips, (24, 2)):
        indices = [int((count - 1) / 8 + np.round((count - 1) / 4 * i)) for i in range(4)]
        assert np.abs(middle_colours(clip["video"])[:, 0] - [ramp[i][0] for i in indices]).max() < 4


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_dataset_crops_the_middle_square(size, tmp_path):
    width, height = size
    frame = np.full((height, width, 3), 20, np.uint8)
    frame[(height - 32) // 2 : (height + 32) // 2, (width - 32) // 2 : (width + 32) // 2] = 200
    write_clip(tmp_path, "a", [frame] * 3, size=size)
    video = TextVideoDataset(tmp_path, num_frames=3, frame_size=16, augment=False)[0]["video"]
    assert np.abs((video.numpy() + 1) * 127.5 - 200)[:, :, 1:-1, 1:-1].max() < 6


def test_augmentation_is_a_function_of_epoch_and_index(folder):
    clips = TextVideoDataset(folder, num_frames=4, frame_size=16)
    plain = TextVideoDataset(folder, num_frames=4, frame_size=16, augment=False)
    first = clips[3, 0]["video"]
    clips[5, 1]
    assert torch.equal(clips[3, 0]["video"], first)
    assert not torch.equal(clips[4, 0]["video"], first)
    assert not torch.equal(first, plain[3, 0]["video"])
    assert torch.equal(plain[3, 0]["video"], plain[4, 0]["video"])
    shifts = [float((clips[epoch, 0]["video"] - plain[0]["video"]).abs().mean()) for epoch in range(8)]
    assert 0 < max(shifts) < 0.2  # a little


def test_a_subclass_may_augment_text_and_video(folder):
    class Mine(TextVideoDataset):
        def augment_text(self, text):
            return f"{text} {self.rng.integers(1000)}"

        def augment_video(self, frames):
            assert frames.dtype == np.uint8 and frames.shape == (4, 16, 16, 3)
            return frames[::-1]

    clips = Mine(folder, num_frames=4, frame_size=16)
    item = clips[0, 0]
    assert np.abs(middle_colours(item["video"]) - COLORS[::-1]).max() < 6
    assert item["text"].startswith("红色的圆环 moving café ")
    assert len({clips[epoch, 0]["text"] for epoch in range(5)}) > 1
    assert clips[0, 0]["text"] == item["text"]


def test_dataset_uses_pairs_only_and_at_most_max_samples(folder):
    write_clip(folder, "c", COLORS)
    write_clip(folder, "d", COLORS)
    (folder / "captions" / "c.txt").unlink()
    (folder / "captions" / "nothing.txt").write_text("no video")
    (folder / "videos" / "notes.md").write_text("no video")
    assert [video.name for video, _ in TextVideoDataset(folder).pairs] == ["a.mp4", "b.mp4", "d.mp4"]
    assert len(TextVideoDataset(folder, max_samples=2)) == 2


def test_dataset_ignores_hidden_files_and_the_case_of_suffixes(folder, capsys):
    for name in ("videos/._a.mp4", "captions/._a.txt", "videos/d.webm", "captions/d.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "captions" / "b.txt").rename(folder / "captions" / "b.TXT")
    assert [(v.name, c.name) for v, c in TextVideoDataset(folder).pairs] == [("a.mp4", "a.txt"), ("b.mp4", "b.TXT")]
    datasets(FolderTrainingOptions.resolved({"data": str(folder)}))
    assert "1 files of" in (stderr := capsys.readouterr().err) and "left out, the first is d.webm" in stderr


def logged(stderr, event):
    return [json.loads(line) for line in stderr.splitlines() if f'"event": "{event}"' in line]


def test_clips_are_counted_and_left_out_files_are_logged(tmp_path, capsys):
    for i in range(12):
        write_clip(tmp_path, f"{i:02d}", COLORS[:2], size=(16, 16), text="" if i == 3 else "a caption")
    (tmp_path / "captions" / "alone.txt").write_text("no video")
    given = {"data": str(tmp_path), "skip_bad_clips": True, "max_samples": 10, "validation_share": 0.2}
    learn, check = datasets(options(**given))
    stderr = capsys.readouterr().err
    (line,) = logged(stderr, "clips")
    assert (line["pairs"], line["training"], line["validation"], line["unused"]) == (12, len(learn), len(check), 3)
    assert (len(learn), len(check)) == (7, 2)
    assert [Path(one["clip"]).name for one in logged(stderr, "left_out")] == ["03.mp4"]
    (warning,) = logged(stderr, "warning")
    assert warning["reason"] == f"1 files of {tmp_path}/captions have no video and are left out, the first is alone.txt"


def test_a_validation_without_clips_of_its_own_is_logged(folder, capsys):
    learn, check = datasets(options(data=str(folder)))
    assert learn.pairs == check.pairs
    assert "too few to hold some out" in logged(capsys.readouterr().err, "warning")[0]["reason"]


def test_a_unicode_line_separator_does_not_split_a_caption(folder):
    (folder / "captions" / "b.txt").write_bytes("\ufeffa red ring\u2028that glides\r\n".encode())
    assert TextVideoDataset(folder)[1]["text"] == "a red ring\u2028that glides"


def test_a_data_folder_without_a_pair_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"has no video in videos/ with a caption of the same stem in captions/: put pairs"):
        TextVideoDataset(tmp_path)


def test_video_that_cannot_be_read_is_named(folder):
    zoo.no_index(folder / "videos").rename(folder / "videos" / "b.mp4")
    with pytest.raises(UsageError, match=r"the training video .*b.mp4 cannot be read: .* is not a readable video"):
        TextVideoDataset(folder)[1]


def test_caption_that_is_not_utf8_is_named(folder):
    (folder / "captions" / "b.txt").write_bytes("红色".encode("gbk"))
    with pytest.raises(UsageError, match=r"captions/b.txt is not UTF-8 text \(byte 1\): save it as UTF-8"):
        TextVideoDataset(folder)[1]


# -------------------------------------------------------------------------------------------------------------- shapes


def test_shapes_dataset_gives_rendered_clips_and_captions():
    clips = ShapesDataset(10, 5, 32, seed=3)
    item = clips[7]
    scene = item["scene"]
    pixels = world.render(scene, 5, 32, 32).transpose(3, 0, 1, 2)
    assert np.array_equal(np.rint((item["video"].numpy() + 1) * 127.5), pixels)
    assert item["text"] == scene.caption()
    assert torch.equal(clips[2, 7]["video"], item["video"])  # the same in every epoch
    assert not torch.equal(ShapesDataset(10, 5, 32, seed=4)[7]["video"], item["video"])


def test_shapes_dataset_may_be_limited_to_inside_scenes_and_few_looks():
    clips = ShapesDataset(60, 17, 32, inside_share=0.5, looks=2)
    scenes = [clips[i]["scene"] for i in range(60)]
    assert len({(scene.color, scene.shape, scene.background) for scene in scenes}) == 2
    assert len({(scene.direction, scene.speed) for scene in scenes}) == 8
    steps = [np.abs(np.diff(scene.centers(17, 32, 32), axis=0)).max() for scene in scenes]  # steps across a border are large
    assert 0.5 < np.mean(np.array(steps) <= 1.01) < 0.95


def test_shapes_dataset_never_draws_held_out_combinations():
    scenes = [ShapesDataset(400, 1, 16, seed=1)[i]["scene"] for i in range(400)]
    drawn = {(scene.color, scene.shape) for scene in scenes}
    assert drawn == {(c, s) for c in world.COLORS for s in world.SHAPES} - set(world.HELD_OUT)


# --------------------------------------------------------------------------------------------------------------- parts


def options(**values):
    return FolderTrainingOptions.resolved({"num_frames": 2, "frame_size": 16, **values})


@pytest.mark.parametrize("share, kept", [(0.05, 1), (0.25, 5), (0.5, 10)])
def test_validation_clips_are_left_out_of_the_training(share, kept, tmp_path):
    for i in range(20):
        write_clip(tmp_path, f"{i:02d}", COLORS[:2], size=(16, 16))
    learn, check = datasets(options(data=str(tmp_path), validation_share=share))
    assert (len(learn), len(check)) == (20 - kept, kept)
    assert not set(learn.pairs) & set(check.pairs)
    assert learn.augment and not check.augment
    few, _ = datasets(options(data=str(tmp_path), validation_share=share, max_samples=8))
    assert len(few) == 8 - round(8 * share)


def test_validation_shapes_differ_from_training_shapes():
    learn, check = datasets(options(data="shapes", max_samples=50, validation_samples=20))
    assert (len(learn), len(check)) == (50, 20)
    assert not {learn[i]["scene"] for i in range(50)} & {check[i]["scene"] for i in range(20)}


def test_a_missing_data_option_is_one_sentence():
    with pytest.raises(UsageError, match=r"no data is given: add --data FOLDER .*, or --data shapes"):
        datasets(options())


def test_collate_stacks_tensors_and_lists_other_values():
    clips = ShapesDataset(3, 2, 16)
    batch = collate([clips[0], clips[2]])
    assert torch.equal(batch["video"], torch.stack([clips[0]["video"], clips[2]["video"]]))
    assert batch["text"] == [clips[0]["text"], clips[2]["text"]]


# --------------------------------------------------------------------------------------------------------------- order


def batches(count, *arguments, **values):
    return [keys for keys, _ in zip(EpochBatchSampler(*arguments, **values), range(count))]


@pytest.mark.parametrize("clips, size", [(12, 4), (10, 4), (3, 5)])
def test_each_epoch_has_every_clip_once_in_an_order_of_its_own(clips, size):
    keys = [key for batch in batches(3 * clips, clips, size, seed=7) for key in batch]
    epochs = [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(clips))] * 3
    assert epochs[0] != epochs[1] or clips < 4
    assert batches(5, clips, size, seed=7) == batches(5, clips, size, seed=7)
    assert batches(5, clips, size, seed=7) != batches(5, clips, size, seed=8)


def test_two_processes_share_the_batches_of_one_process():
    single = batches(9, 10, 4, seed=1)
    ranks = [batches(9, 10, 2, seed=1, rank=rank, world=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks)] == single


@pytest.mark.parametrize("world, rank", [(1, 0), (3, 2)])
def test_a_sampler_started_later_gives_the_same_batches(world, rank):
    values = {"seed": 1, "rank": rank, "world": world}
    assert batches(6, 10, 4, start=5, **values) == batches(11, 10, 4, **values)[5:]


def test_words_option_limits_the_captions_of_shapes():
    clips = ShapesDataset(40, 5, 16, only="ring black")
    captions = [clips[i]["text"] for i in range(40)]
    assert all(" ring " in text and " black " in text for text in captions)
    assert len({text.split()[1] for text in captions}) == 5  # all colours except the one whose ring is held out


@pytest.mark.parametrize("only", ["hexagon", "purple ring", "red blue"])
def test_words_that_no_caption_has_are_reported_in_one_sentence(only):
    with pytest.raises(UsageError, match=f"only is '{only}' and no caption has all of that: choose from a, an, moving, "):
        ShapesDataset(4, 5, 16, only=only)
