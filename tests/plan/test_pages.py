"""The pages that the end of a run of Snakemake writes: each run's on its own."""

from pathlib import Path

from stages import plan
from stages.plan.page.rows import read_page
from tests.plan.test_captions import write_captions
from tests.plan.test_plan import CHAIN


def test_a_run_whose_page_cannot_be_written_stops_no_other_page(config):
    config["runs"] = {name: config["runs"]["demo"] for name in ("one", "two", "three")}
    planned = plan.load(config, 1)
    planned.write()
    Path("results/one/page").write_text("in the way")
    Path("results/two/clips.jsonl").write_text("no JSON")
    *warnings, last = plan.write_pages(planned).splitlines()
    assert [line.partition(" is not written: ")[0] for line in warnings] == [
        "warning: the page of results/one",
        "warning: the page of results/two",
    ]
    assert "line 1 of" in warnings[1] and last == "page: results/three/index.html"
    assert Path("results/three/index.html").is_file()
    Path("results/one/page").unlink()
    assert plan.write_pages(planned).endswith("page: results/index.html")


def test_the_caption_beside_a_source_is_that_of_the_link_that_starts_from_it(config):
    clips = [{"id": name, "video": "a.mp4"} for name in "ab"]
    clips[1] |= {"link_prompts": ["1: a cat"]}  # of its links the second alone is captioned
    config["runs"]["demo"] |= {**CHAIN, "clips": clips}
    planned = plan.load(config, 1)
    planned.write()
    write_captions(planned)
    assert [row["caption"] for row in read_page(Path("results/demo")).values["rows"]] == ["A a/link01.", ""]
