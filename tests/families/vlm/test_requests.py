"""What a captioner is asked: languages, structured descriptions, and prompts of what comes next."""

import json
import shutil
from pathlib import Path

import pytest

from stages.families.vlm.caption import Answer, Caption
from stages.families.vlm.options import CaptionOptions
from stages.families.vlm.prompt import prompt_from
from stages.families.vlm.requests import NEXT, PARTS
from stages.media.select import last
from stages.runtime import artifacts
from stages.runtime.key import digest_options
from tests.commands import stage
from tests.families.vlm.test_caption import caption
from tests.records import fields

STRUCTURED = '{"subject": "A red bird.", "action": "It lands", "camera": "Close-up, still", "setting": "a lake at dawn"}'
ALL = ["subject", "action", "setting", "camera"]


@pytest.fixture
def asked(monkeypatch):
    """The questions that are asked of the model, which answers each from a list: ANSWERS, or a number for each question."""
    found, answers = [], []

    def ask(self, questions, options):
        found.extend(questions)
        texts = answers or [f"answer {len(found)}."]
        return [Answer(texts.pop(0), (10, 2)) for _ in questions]

    monkeypatch.setattr(Caption, "_ask", ask)
    return found, answers


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "given, digest",
    [
        ({}, "7b164d2cf746205ec0b49f1ad9d2446d7abee5d9c46e1a5649de3c5126ff41a3"),
        (
            {"prefix": "continue video", "include_last": True},
            "2e231667b171cba5d702d03277ffb4721c2e9d5b30507f3d0f2f371e058f7051",
        ),
    ],
)
def test_captions_of_earlier_versions_keep_their_keys(given, digest):
    """The digests are those of the version before languages, structures and rewriting existed."""
    assert digest_options(CaptionOptions.declared, CaptionOptions.resolved(given).values()) == digest


def test_the_request_is_a_part_of_the_key():
    keys = set()
    for given in (
        {},
        {"rewrite": "next"},
        {"rewrite": "next", "language": "zh"},
        {"rewrite": "next", "rewrite_request": "?"},
    ):
        keys.add(digest_options(CaptionOptions.declared, CaptionOptions.resolved(given).values()))
    assert len(keys) == 4


def test_the_description_is_asked_for_in_a_language(clips, tiny_vlm, tmp_path, asked):
    questions, _ = asked
    for language, end in (("en", "Answer in English."), ("zh", "请用中文回答。")):
        caption(clips[0], tmp_path / f"{language}.json", "-m", tiny_vlm, "--language", language)
        assert questions[-1].text == f"Describe this video in detail. {end}"


def test_the_requests_are_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "captions.md").read_text().replace("\n> ", "")
    for text in NEXT.values():
        assert "".join(text.split()) in "".join(page.split())


# ------------------------------------------------------------------------------------------------ structured captions


@pytest.mark.parametrize(
    "raw",
    [
        STRUCTURED,
        f"Sure, here it is:\n```json\n{STRUCTURED}\n```\nAnything else?",
        f"<think>{{}}</think>{STRUCTURED}",
        STRUCTURED.replace('dawn"}', 'dawn",\n}'),
        STRUCTURED.removesuffix('"}'),
        STRUCTURED.replace('"subject"', '"Subject"').replace('"A red bird."', '["A red bird.", null]'),
        STRUCTURED.replace('"A red bird."', '{"type": "A red bird."}'),
    ],
    ids=["clean", "fenced", "after a thought", "trailing comma", "broken off", "a list", "a table"],
)
def test_a_structured_description_becomes_sentences(raw):
    assert prompt_from(raw, "continue", ALL) == "continue A red bird. It lands. A lake at dawn. Close-up, still."
    assert prompt_from(raw, "", ["action", "camera"]) == "It lands. Close-up, still."


def test_a_description_that_is_no_json_is_taken_as_prose(clips, tiny_vlm, tmp_path, asked):
    questions, answers = asked
    answers += ["A bird lands.", STRUCTURED]
    structure = ("--structure", "action", "--structure", "camera")
    stderr = stage("caption_vlm", clips[0], "-o", tmp_path / "a.json", "-m", tiny_vlm, *structure)
    assert f"the model's description of {clips[0]} is not the JSON that was asked for, and is taken as prose" in stderr
    assert artifacts.read(tmp_path / "a.json", ("caption",)).fields["prompt"] == "A bird lands."
    made = caption(clips[0], tmp_path / "b.json", "-m", tiny_vlm, *structure)
    assert (made["prompt"], made["raw"]) == ("It lands. Close-up, still.", STRUCTURED)
    for name in PARTS:
        assert f'"{name}" (' in questions[0].text


# ------------------------------------------------------------------------------------------------- what comes next


def clip_artifact(folder, video, prompt):
    """A generated clip with a prompt, as decode writes it."""
    shutil.copyfile(video, folder / "clip.mp4")
    artifacts.write_index(folder / "clip.json", "clip", fields("clip", prompt=prompt), [".mp4"])
    return folder / "clip.json"


def test_a_prompt_of_what_comes_next_is_asked_for_with_the_caption_and_the_prompt_before(clips, tiny_vlm, tmp_path, asked):
    questions, answers = asked
    answers += ["The video shows a red bird.", "**The bird** takes off."]
    source = clip_artifact(tmp_path, clips[0], "a bird flies over a lake")
    made = caption(source, tmp_path / "a.json", "-m", tiny_vlm, "--rewrite", "next", "--prefix", "sks")
    described, request = questions
    assert described.text == "Describe this video in detail." and len(described.frames) == 8
    assert [frame.index for frame in request.frames] == [8, 11, 13, 16] == made["ending"]  # of 17 frames, 8 a second
    off = request.frames[-1].rgb.astype(int) - last(clips[0])[-1].rgb
    assert abs(off).mean() < 2  # another converter rounds otherwise
    expected = NEXT["en"].replace("{caption}", "A red bird.").replace("{previous}", "a bird flies over a lake")
    assert request.text == made["request"] == expected
    assert made["raw"] == "**The bird** takes off." and made["prompt"] == "sks The bird takes off."
    assert made["description"] == "The video shows a red bird." and made["tokens"] == {"in": 20, "out": 4}


def test_a_user_s_video_has_no_prompt_before(clips, tiny_vlm, tmp_path, asked):
    questions, _ = asked
    caption(clips[0], tmp_path / "a.json", "-m", tiny_vlm, "--rewrite", "next", "--language", "zh")
    assert questions[1].text == NEXT["zh"].replace("{caption}", "Answer 1.").replace("{previous}", "无")


def test_the_request_is_in_the_provenance(clips, tiny_vlm, tmp_path):
    caption(clips[0], tmp_path / "a.json", "-m", tiny_vlm, "--rewrite", "next", "--max-new-tokens", 4)
    (record,) = json.loads((tmp_path / "a.json").read_text())["provenance"]
    assert record["options"]["rewrite_request"] == NEXT["en"]


def test_a_given_prompt_is_not_rewritten(clips, tmp_path, asked):
    made = caption(clips[0], tmp_path / "a.json", "--prompt", "a dog", "--rewrite", "next")
    assert made["prompt"] == "a dog" and not asked[0]
