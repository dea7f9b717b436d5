"""The command `verify` on a film of a real run: what is right passes, and whatever was changed is named."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

from stages.verify import main
from tests import zoo
from tests.workflow.conftest import TINY, Project, finish, models, preloaded_projects  # noqa: F401

FILM = "results/demo/a.mp4"
STEPS = "results/demo/steps/a"


@pytest.fixture(scope="module")
def made(tmp_path_factory, models, tiny_wan):  # noqa: F811
    """A project with a film of v2v, and models of its own."""
    folder = tmp_path_factory.mktemp("verify")
    own = {name: {**models[name], "path": f"models/{name}"} for name in ("one-expert", "eye")}
    for name in own:
        shutil.copytree(models[name]["path"], folder / "models" / name)
    project = Project(folder, own)
    zoo.plain(folder, "a.mp4", frames=5, size=(64, 48))
    run = {"recipe": "v2v", "fuse": True, "clips": [{"video": "a.mp4"}], "model": "one-expert", "captioner": "eye"}
    run["options"] = {**TINY, "source_first": True}
    project.configure(demo=run, named={**run, "clips": [{"id": "scene.take2", "video": "a.mp4"}]})
    project.run("--cores", 2)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of the project, at another place."""
    copy = shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def verify(*arguments, fails=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.output or result.exception
    return result.output


def flip(path, place=-100):
    """Change one bit of a file, and keep its size and its time."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    mode = state.st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_right_film_passes_from_any_place(folder, tmp_path, monkeypatch):
    assert verify(FILM).startswith(f"{FILM}: right (")
    monkeypatch.chdir(tmp_path)
    assert "right (" in verify(folder / FILM) and "not there" not in verify(folder / FILM)


def test_what_is_deleted_is_counted_and_no_fault(folder):
    shutil.rmtree("results/demo/steps")
    shutil.rmtree("results/store")
    assert "right (" in (output := verify(FILM)) and "not there to compare" in output


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (FILM, f"{FILM} is not the file of the result"),
        ("results/demo/a.json", "a.json is not the file of the result"),
        ("a.mp4", "a.mp4 is not what extract_frames read"),
        (f"{STEPS}/latents.safetensors", "latents.safetensors is not what decode read"),
        (f"{STEPS}/clip.mkv", "clip.mkv, a member of"),
        ("models/one-expert/vae/diffusion_pytorch_model.safetensors", "model one-expert is not what encode loaded"),
        ("models/eye/tokenizer.json", "model eye is not what caption_vlm loaded"),
    ],
)
def test_one_changed_bit_is_named(folder, path, sentence):
    flip(folder / path)
    output = verify(FILM, fails=1)
    assert f"{FILM}: WRONG (" in output and sentence in output


def test_a_caption_that_was_edited_by_hand_is_named(folder):
    caption = folder / STEPS / "caption.json"
    content = json.loads(caption.read_text())
    content["fields"]["prompt"] = "something else"
    caption.write_text(json.dumps(content))
    assert "caption.json is not what encode read" in verify(FILM, fails=1)


def test_an_option_that_was_edited_in_the_provenance_is_named(folder):
    """Also where the record beside the film, which has the digest of the JSON, was edited too."""
    path = folder / "results/demo/a.json"
    content = json.loads(path.read_text())
    generate = next(record for record in content["provenance"] if record["stage"] == "generate")
    generate["options"]["seed"] += 1
    path.write_text(json.dumps(content))
    (folder / "results/demo/.a.mp4.record").unlink()
    (fault,) = verify(FILM, fails=1).splitlines()[1:]
    assert "the record of generate was edited: its options, inputs and weights do not give its key" in fault


def entries(folder):
    """The store's entry of each stage."""
    records = json.loads((folder / "results/demo/a.json").read_text())["provenance"]
    return {record["stage"]: folder / "results/store" / record["key"][:2] / record["key"] for record in records}


def test_a_swapped_entry_of_the_store_is_named(folder):
    found = entries(folder)
    shutil.rmtree(found["generate"])
    shutil.copytree(found["encode"], found["generate"])
    assert "the store entry of generate" in (output := verify(FILM, fails=1)) and "the entry of another item" in output
    seal = found["generate"] / "seal.json"  # with a forged seal
    seal.chmod(0o644)
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "key": found["generate"].name}))
    output = verify(FILM, fails=1)
    assert "the store entry of generate" in output and "holds another result than the one that was read" in output


def test_a_film_made_again_has_equal_bytes(folder):
    assert "made again: equal bytes" in verify(FILM, "--remake")
    assert "made again: equal bytes" in verify("results/named/scene.take2.mp4", "--remake")  # which is no take


def test_a_film_that_its_inputs_do_not_make_is_named_when_made_again(folder):
    """A forgery whose digests fit: another film, in the place of the film and in its description and record."""
    zoo.plain(folder, "other.mp4", frames=9, size=(32, 32))
    shutil.copy(folder / "other.mp4", folder / FILM)
    output = verify(FILM, "--remake", fails=1)
    assert "WRONG" in output


def test_a_film_that_is_cut_off_is_named_as_changed(folder):
    film = folder / FILM
    film.chmod(0o644)
    with open(film, "r+b") as file:
        file.truncate(1000)
    output = verify(FILM, fails=1)
    assert "a.mp4: its SHA-256 is " in output and "sign it again" not in output


def test_a_video_of_others_is_no_result(folder):
    assert "a.mp4 has no a.json beside it, which says what it is: give a result of Kinemake" in verify("a.mp4", fails=1)


def test_files_that_are_no_result_are_named_one_by_one(folder):
    output = verify("missing.mp4", "config.yaml", FILM, fails=1)
    assert "missing.mp4 does not exist" in output and "config.yaml is not a whole Kinemake file" in output
    assert f"{FILM}: right (" in output


def test_names_of_files_print_no_control_characters(folder):
    assert verify("a\x1b[2J\u202e.mp4", fails=1).replace("\n", "").isprintable()
