"""The caption sheet of a run: which prompts it gives, what it makes again, and what is written into it."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.plan.captions import SHEET, read_edits, read_rows, write_sheet
from stages.runtime.artifacts import write_index
from stages.runtime.errors import UsageError
from tests.plan.test_plan import CHAIN, changed_jobs
from tests.records import fields

HEAD = "clip,link,caption,prompt,source\n"
IDS = ["a", "b"]


def edits(text, tmp_path, ids=IDS):
    path = tmp_path / "sheet.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_edits(str(path), "demo", ids)[0]


def write_captions(planned, **texts):
    """Write the captions of planned items as caption_vlm would: by id, or the prompt that is given."""
    for part in planned.parts:
        for item in part.items if part.stage.name == "caption_vlm" else ():
            raw = "" if item.options["prompt"] else texts.get(item.id, f"A {item.id}.")
            Path(item.output).parent.mkdir(parents=True, exist_ok=True)
            write_index(Path(item.output), "caption", fields("caption", raw=raw, prompt=item.options["prompt"] or raw))


def written(config, **texts):
    """The rows of the sheet that a run of demo writes."""
    planned = plan.load(config, 1)
    write_captions(planned, **texts)
    write_sheet("results/demo", planned.runs[0].clips)
    path = Path("results/demo") / SHEET
    return rows_in(path)


def rows_in(path, ids=IDS):
    return [(row.clip, row.link, row.caption, row.prompt, row.source) for row in read_rows(str(path), "demo", ids)]


def prompts(config):
    """The prompts of the items that caption, by id."""
    parts = plan.load(config, 1).parts
    return {item.id: item.options["prompt"] for part in parts if part.stage.name == "caption_vlm" for item in part.items}


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "a,,A cat.,A dog.,caption\nb,,A cow.,A cow.,caption\n",
        "\ufeff" + HEAD + "a,,A cat.,A dog.,caption\r\nb,,A cow.,A cow.,caption\r\n",
        "\ufeffclip;link;caption;prompt;source\r\na;;A cat.;A dog.;caption\r\nb;;A cow.;A cow.;caption\r\n",
        "clip\tlink\tcaption\tprompt\tsource\na\t1\tA cat.\tA dog.\tcaption\n",
        '"clip","link","caption","prompt","source","note"\n"a","1","A cat.","A dog.","","good"\n"b","","A cow.","","",""\n',
        "prompt,clip\nA dog.,a\n",
        HEAD + 'a,,A cat.,A dog.,caption\nb,,"A cow, a\nlake.","A cow, a \r\n lake.",caption\n,,,,\n',
    ],
    ids=["as written", "Excel", "semicolons", "tabs", "LibreOffice", "two columns", "line breaks"],
)
def test_an_edited_row_gives_its_prompt_and_others_none(text, tmp_path):
    assert edits(text, tmp_path) == {("a", 1): "A dog."}


def test_a_number_that_lost_its_zeros_names_its_clip(tmp_path):
    """Spreadsheet programs make 7 of 0007."""
    text = HEAD + "7,,A cat.,A dog.,caption\n12,2,A cat.,A cow.,caption\n"
    assert edits(text, tmp_path, ["0007", "0012"]) == {("0007", 1): "A dog.", ("0012", 2): "A cow."}
    assert edits(text, tmp_path, ["7", "0007", "007", "0012"]) == {("7", 1): "A dog.", ("0012", 2): "A cow."}
    assert edits(text, tmp_path, ["007", "0007", "0012"]) == {("0012", 2): "A cow."}


@pytest.mark.parametrize(
    "text, sentence",
    [
        (HEAD + "a,,x,y,\na,1,x,z,\n", "row 3 of {path} is the second one of clip a, link 1: remove one of them"),
        (HEAD + "a,first,x,y,\n", "link of row 2 of {path} is 'first': it must be a number from 1, or empty"),
        (HEAD + ",,x,y,\n", "row 2 of {path} has no clip"),
        ("clip,promt\na,A dog.\n", "{path} has no prompt: its columns are clip, link, caption, prompt"),
        ("clip,prompt\na,Hündin\n".encode("latin-1"), "{path} is not UTF-8 text (byte 16): save it as UTF-8"),
    ],
)
def test_a_wrong_sheet_is_one_sentence(text, sentence, tmp_path):
    with pytest.raises(UsageError) as error:
        edits(text, tmp_path)
    assert sentence.format(path=tmp_path / "sheet.csv") in str(error.value)


def test_clips_and_links_that_a_run_does_not_have_are_warned_of(config):
    Path("sheet.csv").write_text(HEAD + "z,,x,y,\na,3,x,y,\n")
    config["runs"]["demo"]["captions"] = "sheet.csv"
    assert plan.load(config, 1).warnings == [
        "the captions of run demo name clips that it does not have: 'z'",
        "the captions of run demo have prompts where nothing is captioned: clip a, link 3",
    ]


@pytest.mark.parametrize("text", ["", HEAD])
def test_a_sheet_without_rows_is_named_in_a_warning(config, text):
    """Edits that an earlier run took from it would vanish without a word."""
    Path("sheet.csv").write_text(text)
    config["runs"]["demo"]["captions"] = "sheet.csv"
    assert plan.load(config, 1).warnings == ["the captions sheet.csv of run demo have no rows, so no prompt of it is taken"]


# --------------------------------------------------------------------------------------------------------- taken back


def test_a_sheet_that_comes_back_unchanged_makes_nothing_again(config):
    assert written(config, a="A cat.") == [("a", 1, "A cat.", "A cat.", "caption"), ("b", 1, "a cat", "a cat", "given")]
    assert changed_jobs(config, captions=f"results/demo/{SHEET}") == set()


def test_an_edited_row_gives_the_prompt_of_its_clip(config):
    """It counts more than the prompt in the list of clips, and less than that on the command line."""
    Path("sheet.csv").write_text(HEAD + "a,,A cat.,A dog.,\nb,,a cat,a cow,\n")
    config["runs"]["demo"]["captions"] = "sheet.csv"
    assert prompts(config) == {"a": "A dog.", "b": "a cow"}
    config["options"] = {"prompt": "a bee"}
    assert prompts(config) == {"a": "a bee", "b": "a bee"}


def test_an_edited_row_needs_no_captioner(config):
    del config["runs"]["demo"]["captioner"]
    config["runs"]["demo"]["captions"] = [{"clip": "a", "prompt": "A dog."}]
    assert prompts(config) == {"a": "A dog.", "b": "a cat"}


def test_an_edited_link_of_a_chain_leaves_those_before_it_current(config):
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}], "options": {"links": 3, "seed": 7}, "fuse": False}
    changed = changed_jobs(config, captions=[{"clip": "a", "link": 2, "prompt": "A dog."}])
    steps = ("caption_vlm", "encode", "generate", "decode")
    assert changed == {"demo.concat.000", *(f"demo.{step}.link0{link}.000" for step in steps for link in (2, 3))}
    assert prompts(config) == {"a/link01": "", "a/link02": "A dog.", "a/link03": ""}


@pytest.mark.parametrize("how", [{"prompt_mode": "first"}, {"prompt": "a cow"}])
def test_an_edited_link_of_a_chain_with_one_caption_is_the_only_other_one(config, how):
    given = how.get("prompt", "")
    options = {"links": 3, "seed": 7, **how}
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}], "options": options, "fuse": False}
    config["runs"]["demo"]["captions"] = [{"clip": "a", "link": 2, "prompt": "A dog."}]
    assert prompts(config) == {"a/link01": given, "a/link02": "A dog."}
    encode = {job.name: job.items[0].inputs["caption"] for job in plan.load(config, 1).jobs if ".encode." in job.name}
    assert [path.split("/")[-2] for path in encode.values()] == ["link01", "link02", "link01"]
    config["runs"]["demo"]["captions"] = [{"clip": "a", "prompt": "A dog."}]
    assert prompts(config) == {"a/link01": "A dog."}


def test_a_link_with_a_prompt_of_its_own_leaves_the_row_of_the_shared_caption_to_the_next(config):
    options = {"links": 4, "seed": 7, "prompt_mode": "first", "link_prompts": ["1: a cow"]}
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}], "options": options, "fuse": False}
    assert prompts(config) == {"a/link01": "a cow", "a/link02": ""}
    config["runs"]["demo"]["captions"] = [{"clip": "a", "link": link, "prompt": f"{link} dogs"} for link in (1, 2, 4)]
    assert prompts(config) == {"a/link01": "1 dogs", "a/link02": "2 dogs", "a/link04": "4 dogs"}


def test_takes_share_an_edited_caption_and_a_row(config):
    config["runs"]["demo"]["options"]["takes"] = 2
    config["runs"]["demo"]["captions"] = [{"clip": "a", "prompt": "A dog."}]
    assert prompts(config) == {"a": "A dog.", "b": "a cat"}
    assert written(config) == [("a", 1, "", "A dog.", "edited"), ("b", 1, "a cat", "a cat", "given")]


@pytest.mark.parametrize(
    "run",
    [
        {"recipe": "longlive", "model": "long", "clips": [{"id": "a", "video": "a.mp4", "prompt2": "x"}]},
        {"recipe": "fresco", "model": "look", "clips": [{"video": "a.mp4"}]},
        {"recipe": "dynamicrafter", "model": "craft", "clips": [{"image": "a.png"}]},
    ],
)
def test_every_recipe_that_captions_takes_a_sheet(config, run):
    config["models"] |= {
        "long": {"family": "longlive", "path": "long"},
        "look": {"family": "fresco", "path": "look"},
        "craft": {"family": "dynamicrafter", "variant": "256", "path": "craft"},
    }
    Path("a.png").touch()
    config["runs"]["demo"] = {"captioner": "eye", "scores": [], **run, "captions": [{"clip": "a", "prompt": "A dog."}]}
    assert prompts(config) == {"a": "A dog."}


def test_the_description_of_a_run_has_the_edits_and_not_the_sheet(config):
    """The sheet may be edited further, and the run stays what it is."""
    Path("sheet.csv").write_text(HEAD + "a,,A cat.,A dog.,\n")
    config["runs"]["demo"]["captions"] = "sheet.csv"
    plan.load(config, 1).write()
    Path("sheet.csv").unlink()
    described = plan.load(yaml.safe_load(Path("results/demo/config.yaml").read_text()), 1)
    assert described.runs[0].run.captions == {("a", 1): "A dog."}


# ------------------------------------------------------------------------------------------------------------ written


def test_a_run_without_captions_of_a_model_has_no_sheet(config):
    config["runs"]["demo"]["options"]["prompt"] = "a cow"
    planned = plan.load(config, 1)
    planned.write()
    write_captions(planned)
    planned.write_tables()
    assert not (Path("results/demo") / SHEET).exists()


def test_the_sheet_has_a_row_per_link_of_a_chain(config):
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}]}
    assert written(config) == [
        ("a", 1, "A a/link01.", "A a/link01.", "caption"),
        ("a", 2, "A a/link02.", "A a/link02.", "caption"),
    ]
    assert "\na,2," in (Path("results/demo") / SHEET).read_text()


def test_the_sheet_is_in_the_encoding_that_spreadsheet_programs_know(config):
    assert written(config, a="一只鸟")[0][3] == "一只鸟"
    assert (Path("results/demo") / SHEET).read_bytes().startswith(b"\xef\xbb\xbfclip,link,caption,prompt,source\n")


def test_edits_in_the_sheet_of_a_run_are_kept_by_later_ones(config):
    written(config, a="A cat.")
    path = Path("results/demo") / SHEET
    path.write_text(HEAD + "a,,A cat.,A dog.,caption\nb,,a cat,,given\nz,,A fly.,A flea.,caption\n")
    config["runs"]["demo"]["clips"] += [{"video": "b.mp4", "id": "c"}]
    kept = [("a", 1, "A cat.", "A dog.", "edited, not taken back"), ("b", 1, "a cat", "a cat", "given")]
    new, gone = ("c", 1, "A c.", "A c.", "caption"), ("z", 1, "A fly.", "A flea.", "caption")
    assert written(config, a="A cat.") == [*kept, new, gone]
    config["runs"]["demo"]["captions"] = str(path)  # and taken back
    assert prompts(config) == {"a": "A dog.", "b": "a cat", "c": ""}
    assert written(config) == [("a", 1, "A cat.", "A dog.", "edited"), kept[1], new, gone]


def test_an_edit_that_the_run_has_not_taken_yet_stays_beside_an_older_one_in_use(config):
    """Edited again before the caption was made again: after another target, an error, Ctrl-C, or while the run works."""
    written(config, a="A cat.")
    path = Path("results/demo") / SHEET
    config["runs"]["demo"]["captions"] = str(path)
    path.write_text(HEAD + "a,,A cat.,A dog.,caption\n")
    assert written(config)[0] == ("a", 1, "A cat.", "A dog.", "edited")
    working = plan.load(config, 1)
    path.write_text(path.read_text().replace("A dog.", "A big dog."))
    later = plan.load(config, 1)  # whose caption is not made yet
    for planned in (working, later):
        write_sheet("results/demo", planned.runs[0].clips)
        assert rows_in(path)[0] == ("a", 1, "A cat.", "A big dog.", "edited, not taken back")
    assert prompts(config)["a"] == "A big dog."
    assert written(config)[0] == ("a", 1, "A cat.", "A big dog.", "edited")


def test_an_edit_that_is_taken_out_of_the_sheet_does_not_come_back(config):
    written(config, a="A cat.")
    path = Path("results/demo") / SHEET
    config["runs"]["demo"]["captions"] = str(path)
    path.write_text(HEAD + "a,,A cat.,A dog.,caption\n")
    written(config)
    working = plan.load(config, 1)
    path.write_text(HEAD + "a,,A cat.,,edited\n")  # and with it all that was in the column
    for planned in (working, plan.load(config, 1)):
        write_sheet("results/demo", planned.runs[0].clips)
        assert rows_in(path)[0] == ("a", 1, "A cat.", "", "edited")
    assert written(config, a="A cat.")[0] == ("a", 1, "A cat.", "A cat.", "caption")


def test_an_edit_of_a_number_that_lost_its_zeros_is_the_row_of_its_clip(config):
    config["runs"]["demo"]["clips"] = [{"id": "0007", "video": "a.mp4"}]
    written(config, **{"0007": "A cat."})
    path = Path("results/demo") / SHEET
    path.write_text(HEAD + "7,,A cat.,A dog.,caption\n")
    assert written(config, **{"0007": "A cat."}) == [("0007", 1, "A cat.", "A dog.", "edited, not taken back")]
    path.write_text(HEAD + "7,,A cat.,A dog.,caption\n0007,,A cat.,A cow.,caption\n")
    with pytest.raises(UsageError, match="is the second one of clip 0007, link 1: remove one of them"):
        written(config, **{"0007": "A cat."})


@pytest.mark.parametrize("text", ["=1+1", "- a dog", "+1", "@cat", "'=1", "''- a", "'a cat'", "a = b"])
def test_no_prompt_is_a_formula_to_a_spreadsheet_and_each_comes_back_as_it_was(config, text):
    assert written(config, a=text)[0] == ("a", 1, text, text, "caption")
    path = Path("results/demo") / SHEET
    cells = next(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    assert cells["caption"] == cells["prompt"] and cells["prompt"].endswith(text) and cells["prompt"][0] not in "=+-@"
    config["runs"]["demo"]["captions"] = str(path)
    assert prompts(config)["a"] == ""
    path.write_text(HEAD + f'a,,A cat.,"{cells["prompt"]}",caption\n')
    assert prompts(config)["a"] == text


def test_a_sheet_that_cannot_be_read_is_not_overwritten(config, capsys):
    planned = plan.load(config, 1)
    planned.write()
    write_captions(planned)
    path = Path("results/demo") / SHEET
    path.write_text('clip,prompt\na,"A dog\n')
    planned.write_tables()
    assert path.read_text() == 'clip,prompt\na,"A dog\n'
    assert "warning: the captions in results/demo are not written" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- target


def test_captions_of_a_fused_run_are_a_job_of_their_own(config):
    """They are made before anything is generated; the job that makes all finds them."""
    config["runs"]["demo"]["fuse"] = True
    planned = plan.load(config, 1)
    (job,) = planned.caption_jobs
    assert (job.name, [item.id for item in job.items]) == ("demo.caption_vlm.000", ["a", "b"])
    assert planned.targets["demo.caption_vlm"] == [job.mark] != planned.targets["demo.generate"]
    assert job.command(1).startswith("caption_vlm --manifest results/demo/steps/manifests/demo.caption_vlm.000.jsonl")
    fused = next(part for part in planned.jobs[0].parts if part.step == "caption_vlm")
    assert fused.items == job.items
    planned.write([job.name])
    assert [json.loads(line)["id"] for line in Path(job.manifest).read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("fuse", [True, False])
def test_the_captions_of_a_chain_that_can_be_seen_before_are_those_of_its_first_link(config, fuse):
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}], "fuse": fuse}
    planned = plan.load(config, 1)
    jobs = {job.mark: job for job in (*planned.jobs, *planned.caption_jobs)}
    assert [item.id for mark in planned.targets["demo.caption_vlm"] for item in jobs[mark].items] == ["a/link01"]
