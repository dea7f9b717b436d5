"""Clips to train on: what a folder gives, in which order, and what is said of a folder that gives nothing."""

import numpy as np
import pytest
import torch

from stages.media.shapes import world
from stages.media.write import VideoWriter
from stages.models.shared.training.data import Order, ShapesDataset, TextVideoDataset, collate, datasets
from stages.models.shared.training.options import shared
from stages.runtime.errors import UsageError
from stages.runtime.options import resolve
from tests import zoo

COLORS = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (230, 220, 40)]


def film(folder, name, frames, text="a caption", size=(32, 32), suffix=".mp4"):
    """A video of whole pictures, RGB [H, W, 3] or one colour each, and its caption."""
    for part in ("videos", "captions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, height = size
    with VideoWriter(folder / "videos" / f"{name}{suffix}", width, height, 8, crf=4) as video:
        for frame in frames:
            video.write(np.broadcast_to(np.array(frame, np.uint8), (height, width, 3)))
    (folder / "captions" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    film(tmp_path, "a", COLORS, "红色的圆环 moving café")
    film(tmp_path, "b", COLORS[:1] * 4, "b")
    return tmp_path


def middles(video) -> np.ndarray:
    """The colour in the middle of each frame of [3, T, H, W], 0 to 255."""
    _, _, height, width = video.shape
    return ((video[:, :, height // 2, width // 2].T.double() + 1) * 127.5).numpy()


# -------------------------------------------------------------------------------------------------------------- folder


def test_clip_has_its_frames_in_order_and_colour_and_its_caption(folder):
    item = TextVideoDataset(folder, num_frames=4, frame_size=16, augment=False)[0]
    assert item["video"].shape == (3, 4, 16, 16) and item["video"].dtype == torch.float32
    assert np.abs(middles(item["video"]) - COLORS).max() < 6
    assert (item["text"], item["name"]) == ("红色的圆环 moving café", "a.mp4")


def test_range_is_minus_one_to_one_or_without_normalize_zero_to_one(folder):
    film(folder, "c", [(0, 0, 0), (255, 255, 255)])
    own = {"num_frames": 2, "frame_size": 16, "augment": False}
    whole, half = (TextVideoDataset(folder, normalize=normalize, **own)[2]["video"] for normalize in (True, False))
    assert whole[:, 0].mean() < -0.98 and whole[:, 1].mean() > 0.98
    torch.testing.assert_close(whole, 2 * half - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".mkv"])
def test_frames_are_spread_over_a_long_video_and_repeat_in_a_short_one(tmp_path, suffix):
    """By the rule of InternVL's cards: the middles of segments of (N - 1) / count frames."""
    ramp = [(8 * i, 8 * i, 8 * i) for i in range(4, 28)]
    film(tmp_path, "long", ramp, suffix=suffix)
    film(tmp_path, "short", ramp[:2], suffix=suffix)
    clips = TextVideoDataset(tmp_path, num_frames=4, frame_size=16, augment=False)
    for clip, count in zip(clips, (24, 2)):
        indices = [int((count - 1) / 8 + np.round((count - 1) / 4 * i)) for i in range(4)]
        assert np.abs(middles(clip["video"])[:, 0] - [ramp[i][0] for i in indices]).max() < 4


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_middle_square_is_taken_of_a_picture_that_is_none(size, tmp_path):
    width, height = size
    frame = np.full((height, width, 3), 20, np.uint8)
    frame[(height - 32) // 2 : (height + 32) // 2, (width - 32) // 2 : (width + 32) // 2] = 200
    film(tmp_path, "a", [frame] * 3, size=size)
    video = TextVideoDataset(tmp_path, num_frames=3, frame_size=16, augment=False)[0]["video"]
    assert np.abs((video.numpy() + 1) * 127.5 - 200)[:, :, 1:-1, 1:-1].max() < 6


def test_augmentation_is_on_and_a_function_of_epoch_and_index(folder):
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


def test_subclass_varies_text_and_video_in_its_own_way(folder):
    class Mine(TextVideoDataset):
        def augment_text(self, text):
            return f"{text} {self.rng.integers(1000)}"

        def augment_video(self, frames):
            assert frames.dtype == np.uint8 and frames.shape == (4, 16, 16, 3)
            return frames[::-1]

    clips = Mine(folder, num_frames=4, frame_size=16)
    item = clips[0, 0]
    assert np.abs(middles(item["video"]) - COLORS[::-1]).max() < 6
    assert item["text"].startswith("红色的圆环 moving café ")
    assert len({clips[epoch, 0]["text"] for epoch in range(5)}) > 1
    assert clips[0, 0]["text"] == item["text"]


def test_only_pairs_count_and_max_samples_cuts_them(folder):
    film(folder, "c", COLORS)
    film(folder, "d", COLORS)
    (folder / "captions" / "c.txt").unlink()
    (folder / "captions" / "nothing.txt").write_text("no video")
    (folder / "videos" / "notes.md").write_text("no video")
    assert [video.name for video, _ in TextVideoDataset(folder).pairs] == ["a.mp4", "b.mp4", "d.mp4"]
    assert len(TextVideoDataset(folder, max_samples=2)) == 2


def test_hidden_files_are_no_clips_and_endings_count_in_any_case(folder, capsys):
    for name in ("videos/._a.mp4", "captions/._a.txt", "videos/d.webm", "captions/d.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "captions" / "b.txt").rename(folder / "captions" / "b.TXT")
    assert [(v.name, c.name) for v, c in TextVideoDataset(folder).pairs] == [("a.mp4", "a.txt"), ("b.mp4", "b.TXT")]
    datasets({**resolve(shared(), {}), "data": str(folder)})
    assert "1 files of" in (said := capsys.readouterr().err) and "left out, the first is d.webm" in said


def test_a_separator_within_a_caption_is_no_end_of_line(folder):
    (folder / "captions" / "b.txt").write_bytes("\ufeffa red ring\u2028that glides\r\n".encode())
    assert TextVideoDataset(folder)[1]["text"] == "a red ring\u2028that glides"


def test_folder_without_a_pair_is_one_sentence(tmp_path):
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


def test_shapes_are_the_worlds_own_pictures_and_captions():
    clips = ShapesDataset(10, 5, 32, seed=3)
    item = clips[7]
    scene = item["scene"]
    pixels = world.render(scene, 5, 32, 32).transpose(3, 0, 1, 2)
    assert np.array_equal(np.rint((item["video"].numpy() + 1) * 127.5), pixels)
    assert item["text"] == scene.caption()
    assert torch.equal(clips[2, 7]["video"], item["video"])  # the same in every epoch
    assert not torch.equal(ShapesDataset(10, 5, 32, seed=4)[7]["video"], item["video"])


def test_a_part_of_the_shapes_is_inside_and_of_few_looks():
    clips = ShapesDataset(60, 17, 32, inside_share=0.5, looks=2)
    scenes = [clips[i]["scene"] for i in range(60)]
    assert len({(scene.color, scene.shape, scene.background) for scene in scenes}) == 2
    assert len({(scene.direction, scene.speed) for scene in scenes}) == 8
    steps = [np.abs(np.diff(scene.centers(17, 32, 32), axis=0)).max() for scene in scenes]  # over a border they are large
    assert 0.5 < np.mean(np.array(steps) <= 1.01) < 0.95


def test_combinations_that_are_held_out_are_never_drawn():
    scenes = [ShapesDataset(400, 1, 16, seed=1)[i]["scene"] for i in range(400)]
    drawn = {(scene.color, scene.shape) for scene in scenes}
    assert drawn == {(c, s) for c in world.COLORS for s in world.SHAPES} - set(world.HELD_OUT)


# --------------------------------------------------------------------------------------------------------------- parts


def options(**given):
    return resolve(shared(num_frames=2), {"frame_size": 16, **given})


@pytest.mark.parametrize("share, kept", [(0.05, 1), (0.25, 5), (0.5, 10)])
def test_validation_clips_are_kept_out_of_the_training(share, kept, tmp_path):
    for i in range(20):
        film(tmp_path, f"{i:02d}", COLORS[:2], size=(16, 16))
    learn, check = datasets(options(data=str(tmp_path), validation_share=share))
    assert (len(learn), len(check)) == (20 - kept, kept)
    assert not set(learn.pairs) & set(check.pairs)
    assert learn.augment and not check.augment
    few, _ = datasets(options(data=str(tmp_path), validation_share=share, max_samples=8))
    assert len(few) == 8 - round(8 * share)


def test_shapes_to_validate_with_are_others_than_those_to_train_on():
    learn, check = datasets(options(data="shapes", max_samples=50, validation_samples=20))
    assert (len(learn), len(check)) == (50, 20)
    assert not {learn[i]["scene"] for i in range(50)} & {check[i]["scene"] for i in range(20)}


def test_missing_data_is_one_sentence():
    with pytest.raises(UsageError, match=r"no data is given: add --data FOLDER .*, or --data shapes"):
        datasets(options())


def test_batch_stacks_tensors_and_lists_the_rest():
    clips = ShapesDataset(3, 2, 16)
    batch = collate([clips[0], clips[2]])
    assert torch.equal(batch["video"], torch.stack([clips[0]["video"], clips[2]["video"]]))
    assert batch["text"] == [clips[0]["text"], clips[2]["text"]]


# --------------------------------------------------------------------------------------------------------------- order


def batches(count, *arguments, **given):
    return [keys for keys, _ in zip(Order(*arguments, **given), range(count))]


@pytest.mark.parametrize("clips, size", [(12, 4), (10, 4), (3, 5)])
def test_each_epoch_goes_through_all_clips_once_in_an_order_of_its_own(clips, size):
    keys = [key for batch in batches(3 * clips, clips, size, seed=7) for key in batch]
    epochs = [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(clips))] * 3
    assert epochs[0] != epochs[1] or clips < 4
    assert batches(5, clips, size, seed=7) == batches(5, clips, size, seed=7)
    assert batches(5, clips, size, seed=7) != batches(5, clips, size, seed=8)


def test_two_processes_make_the_batches_of_one_with_twice_the_size():
    one = batches(9, 10, 4, seed=1)
    ranks = [batches(9, 10, 2, seed=1, rank=rank, world=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks)] == one


@pytest.mark.parametrize("world, rank", [(1, 0), (3, 2)])
def test_from_a_later_batch_on_it_is_the_same(world, rank):
    given = {"seed": 1, "rank": rank, "world": world}
    assert batches(6, 10, 4, start=5, **given) == batches(11, 10, 4, **given)[5:]


def test_all_captions_have_the_words_that_were_asked_for():
    clips = ShapesDataset(40, 5, 16, only="ring black")
    captions = [clips[i]["text"] for i in range(40)]
    assert all(" ring " in text and " black " in text for text in captions)
    assert len({text.split()[1] for text in captions}) == 5  # all colours but the one whose ring is held out


@pytest.mark.parametrize("only", ["hexagon", "purple ring", "red blue"])
def test_words_that_no_caption_has_are_one_sentence(only):
    with pytest.raises(UsageError, match=f"only is '{only}' and no caption has all of that: choose from a, an, moving, "):
        ShapesDataset(4, 5, 16, only=only)
