"""The page of a run in a browser: what it shows, compares and exports, after a real run with a film that failed."""

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from examples import toy_family
from stages.media.read import read_image
from stages.plan.clips import read_clips
from stages.plan.page.rows import RunPage
from stages.plan.page.write import write_page
from stages.plan.picks import picks_by_clip
from tests import zoo
from tests.browser import Visit, chromium
from tests.workflow.conftest import Project, finish

HOSTILE = '</script><img src=x onerror="alert(1)"><b>bold</b> \u2028 &amp; {{7*7}} ${alert(1)}'
HOSTILE_FILE = "<img src=x onerror=alert(2)> #50%25 'a' \"b\".mp4"
SECONDS = 8  # of a film: two of them play in step for five
CLIPS = [
    {"id": "a", "video": HOSTILE_FILE, "prompt": HOSTILE, "seed": 5, "reference": "true.mp4"},
    {"id": "b", "video": "b.mp4", "prompt": "a dull field", "seed": 3, "brighter": 40, "reference": "true.mp4"},
    {"id": "broken", "video": "broken.mp4", "prompt": "nothing"},
]
EXPECTED = ["a", "b", "broken"]


@pytest.fixture(scope="module")
def project(tmp_path_factory, checkout):
    """A project with a run `demo`, of which one film failed, the same run `bright` with another option, and a chain."""
    project = Project(tmp_path_factory.mktemp("page"), {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    toy_family.weights(project.path("grey"))
    for name in (HOSTILE_FILE, "b.mp4"):
        zoo.plain(project.folder, name, frames=4, size=(32, 32))
    zoo.plain(project.folder, "true.mp4", frames=8 * SECONDS, size=(32, 32), fps=8)
    project.path("broken.mp4").write_bytes(b"no video")
    options = {"num_frames": 8 * SECONDS}  # 8 a second
    run = {"recipe": "v2v", "clips": CLIPS, "model": "grey", "options": options, "scores": ["health", "reference"]}
    bright = {**run, "clips": CLIPS[:2], "options": {**options, "brighter": 90}}
    chain = {
        **{**run, "recipe": "chain", "clips": [{"id": "long", "video": "b.mp4", "prompt": "on and on"}]},
        **{"options": {"num_frames": 4, "links": 3, "takes": 2, "picks": ["2: 2"]}, "scores": ["health", "drift"]},
    }
    clips = [{"id": name, "video": "b.mp4", "prompt": "twice"} for name in "xy"]
    takes = {**run, "clips": clips, "options": {"takes": 2, "seed": 7}, "scores": []}
    shots = [{"film": "town", "shot": name, "prompt": "a town"} for name in ("street", "crowd", "roofs")]
    project.path("shots.yaml").write_text(
        json.dumps([{**shots[0], "from": "b.mp4"}, shots[1], {**shots[2], "from": "true.mp4"}])
    )
    of_shots = {"clips": {"shots": "shots.yaml"}, "options": {"num_frames": 12}, "scores": ["seams"]}
    project.configure(demo=run, bright=bright, chain=chain, takes=takes, shots={**run, "recipe": "chain", **of_shots})
    project.report = project.run("--cores", 2, "--keep-going", fails=1)
    return project


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def visit(project, browser):
    """Open a page of the project. At the end nothing has gone wrong in any."""
    visits = []

    def opened(path="results/demo/index.html", **settings):
        visits.append(Visit(browser, project.path(path), **settings))
        return visits[-1]

    yield opened
    for one in visits:
        one.close()


def test_a_run_writes_its_page_and_says_where(project):
    assert "page: results/index.html" in project.report
    for run in ("demo", "bright", "chain"):
        assert project.path(f"results/{run}/index.html").is_file()


def test_a_folder_that_is_no_run_stops_no_page_of_another(project):
    command = ("-P", "-m", "stages.page", "results/none", "results/bright")
    output, error = finish(project.start(*command, program="python"), fails=1)
    assert output == "results/bright/index.html\n" and "results/none is not the folder of a run" in error


def test_the_page_of_a_finished_run_starts_no_job(project):
    project_files = {name: state for name, state in project.files().items() if "/page" in name or name.endswith(".html")}
    assert project_files
    assert "Nothing to be done" in project.run("--cores", 2, "bright", "chain")
    assert project_files == {name: state for name, state in project.files().items() if name in project_files}
    finish(project.start("-P", "-m", "stages.page", "results/bright", program="python"))
    assert project_files == {name: state for name, state in project.files().items() if name in project_files}


def test_the_commands_of_a_film_make_it_again(project):
    """The one that makes a missing film, and the one that makes it once more to compare."""
    make, remake = values_of(project, "bright")["rows"][0]["commands"]
    film = project.path("results/bright/a.mp4")
    before = film.read_bytes()
    film.unlink()
    for line in (make, remake):
        program, *arguments = shlex.split(line)
        finish(project.start(*arguments, program=program))
        assert film.read_bytes() == before


def values_of(project, run):
    """What the page of a run shows, as its script hands it over."""
    text = project.path(f"results/{run}/page/data.js").read_text()
    return json.loads(text[text.index(", {") + 2 : text.rindex("]")])


def test_it_shows_films_and_failures_and_user_text_stays_text(visit):
    demo = visit()
    assert demo.names() == EXPECTED
    assert demo.page.locator("#rows article img[onerror], #rows b b, #rows article script").count() == 0
    assert demo.page.locator('img[src="x"]').count() == 0
    text = demo.row("a").inner_text()
    assert HOSTILE.split("\u2028")[0].strip() in text and "seed 5" in text and f"{8 * SECONDS} frames" in text
    for stage in ("extract_frames", "encode", "generate", "decode", "concat", "score"):
        assert re.search(rf"{stage}\s+[\d.]+ s\s+\d+ MB", text), stage
    failed = demo.row("broken").locator(".failure").inner_text()
    assert "extract_frames: broken.mp4 is not a readable video" in failed and "remedy" in failed
    log = demo.row("broken").locator(".failure a").get_attribute("href")
    assert re.fullmatch(r"\./steps/logs/demo\.\w+\.\d+\.log", log)
    assert demo.page.locator("#summary").inner_text() == "3 films, 1 failed"
    demo.row("a").get_by_role("button", name="Play a,").click()
    demo.wait("document.querySelector('#rows video')?.currentTime > 0")
    demo.row("a").get_by_role("button", name="Play source").click()  # the source's hostile name leads to its file
    demo.wait("document.querySelectorAll('#rows video').length === 1")
    demo.wait("document.querySelector('#rows video').videoWidth === 32")


def test_sort_filter_and_search(project, visit):
    psnr = {name: project.read(f"demo/{name}.scores.json")["fields"]["figures"]["reference.psnr"] for name in "ab"}
    assert abs(psnr["a"] - psnr["b"]) > 0.1
    demo = visit()
    page = demo.page
    page.select_option("#sort", "seed")
    assert demo.names()[:2] == ["b", "a"]
    page.select_option("#sort", "reference.psnr")
    better = sorted("ab", key=lambda name: psnr[name], reverse=True)
    assert demo.names() == [*better, "broken"]  # the better one first, a film without the score last
    page.click("#direction")
    assert demo.names() == [*better[::-1], "broken"]
    page.click("#reset")
    demo.wait("document.querySelector('#rows h2').textContent === 'a'")
    page.select_option("#figure", "reference.psnr")
    page.fill("#least", str(psnr[better[0]] - 0.05))
    assert demo.names() == better[:1]
    page.fill("#least", "")
    page.fill("#most", str(psnr[better[1]] + 0.05))
    assert demo.names() == better[1:]
    page.fill("#most", "")
    page.select_option("#filter-state", "failed")
    assert demo.names() == ["broken"]
    page.select_option("#filter-state", "")
    page.select_option("#filter-stage", "extract_frames")
    assert demo.names() == ["broken"]
    page.select_option("#filter-stage", "")
    page.select_option("#filter-seed", "5")
    assert demo.names() == ["a"]
    page.select_option("#filter-seed", "")
    page.fill("#search", "dull")
    assert demo.names() == ["b"]
    page.fill("#search", "<b>bold</b>")
    assert demo.names() == ["a"]
    page.fill("#search", "no such film")
    assert demo.names() == [] and "No film is left" in page.inner_text("#rows")


def test_two_films_play_in_step_and_by_frames(visit):
    demo = visit()
    page = demo.page
    for name in "ab":
        demo.row(name).get_by_label("compare").check()
    page.click("#compare")
    demo.wait("[...document.querySelectorAll('#stage video')].every((one) => one.readyState === 4)")
    page.click("#play")
    demo.wait("viewer.player.time >= 5", seconds=60)
    times = page.evaluate("viewer.player.videos.map((video) => video.currentTime)")
    assert abs(times[0] - times[1]) < 1 / 8, times
    page.click("#play")
    assert page.evaluate("viewer.player.videos.every((video) => video.paused)")
    at = page.evaluate("viewer.player.seek(2).then(() => viewer.player.videos.map((video) => video.currentTime))")
    assert at == [2, 2]
    frames = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.locator("#viewer").press(key)
        demo.wait("viewer.player.videos.every((video) => !video.seeking)")
        frames.append(page.evaluate("viewer.player.videos.map((video) => Math.floor(video.currentTime * 8))"))
    assert frames == [[17, 17], [18, 18], [17, 17]]
    assert "brighter" in page.inner_text("#differences") and "reference.psnr" in page.inner_text("#differences")


def test_wipe_and_difference_show_pixels_of_both_films(visit, tmp_path):
    """Film a has the tone 100 and film b 140: under the wipe one is left and one right, and their difference is 40."""
    demo = visit()
    page = demo.page
    for name in "ab":
        demo.row(name).get_by_label("compare").check()
    page.click("#compare")
    demo.wait("[...document.querySelectorAll('#stage video')].every((one) => one.readyState === 4)")

    def tones(key):
        """The mean levels of a spot in the left and in the right half of the stage."""
        page.locator("#viewer").press(key)
        page.wait_for_timeout(300)
        page.locator("#stage").screenshot(path=tmp_path / "stage.png")
        image = read_image(tmp_path / "stage.png")
        height, width, _ = image.shape
        return [float(image[height // 3, width // 4 * place].mean()) for place in (1, 3)]

    assert tones("2") == pytest.approx([100, 140], abs=4)
    assert tones("3") == pytest.approx([40, 40], abs=4)
    page.locator("#gain").fill("4")
    assert tones("3") == pytest.approx([160, 160], abs=12)


def test_keys(visit):
    demo = visit()
    page = demo.page
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("s")
    assert demo.row("b").get_by_role("button", name="Star").get_attribute("aria-pressed") == "true"
    page.keyboard.press("c")
    page.keyboard.press("k")
    page.keyboard.press("c")
    page.keyboard.press("d")
    command = demo.row("a").locator("code").first.inner_text()
    assert command == "kinemake run results/demo/a.mp4 --configfile results/demo/config.yaml --cores 1"
    page.keyboard.press("Enter")
    assert page.locator("#stage video").count() == 2
    page.keyboard.press("2")
    assert page.locator("#stage").get_attribute("data-mode") == "wipe"
    page.keyboard.press("Escape")
    demo.wait("!document.querySelector('#stage video')")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("dull")
    assert demo.names() == ["b"]


def picked(demo):
    """The rows of the file of picks that the page exports."""
    with demo.page.expect_download() as download:
        demo.page.click("#export")
    return download.value.suggested_filename, Path(download.value.path()).read_text()


def test_picks_are_exported_as_clips_and_read_again(project, visit, tmp_path):
    demo = visit()
    demo.row("a").get_by_role("button", name="Star").click()
    demo.row("broken").get_by_role("button", name="Reject").click()
    demo.row("b").get_by_label("Note on b").fill(HOSTILE)
    demo.row("b").get_by_label("Note on b").press("Tab")
    name, text = picked(demo)
    assert name == "picks-demo.jsonl"
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["id"], row["mark"], row["note"]) for row in rows] == [
        *[("a", "star", ""), ("b", "", HOSTILE)],
        ("broken", "reject", ""),
    ]
    assert [row["film"] for row in rows] == ["results/demo/a.mp4", "results/demo/b.mp4", ""]
    resolved = [json.loads(line) for line in project.path("results/demo/clips.jsonl").read_text().strip().split("\n")]
    kept = [{"prompts", "seed", *clip} for clip in CLIPS]  # what is not the run's, which the next run may have otherwise
    clips = [{**{k: v for k, v in row.items() if k in keys}, "takes": 1} for row, keys in zip(resolved, kept)]
    assert [row.pop("take_of") for row in rows] == EXPECTED
    assert "reference" in clips[0] and "brighter" in clips[1]
    known = [{key: value for key, value in row.items() if key not in ("film", "mark", "note")} for row in rows]
    assert known == clips
    (tmp_path / "picks.jsonl").write_text(text)
    assert read_clips(str(tmp_path / "picks.jsonl"), "run next")[0] == clips[:2]  # the next run leaves the rejected one out
    demo.page.reload()
    assert demo.row("a").get_by_role("button", name="Star").get_attribute("aria-pressed") == "true"
    other = visit()  # with a storage of its own
    assert other.row("a").get_by_role("button", name="Star").get_attribute("aria-pressed") == "false"
    other.page.set_input_files("#imported", tmp_path / "picks.jsonl")
    other.wait("document.querySelector('#summary').textContent.includes('picks of 3 films')")
    assert picked(other)[1] == text
    (tmp_path / "wrong.jsonl").write_text("no json")
    other.page.set_input_files("#imported", tmp_path / "wrong.jsonl")
    other.wait("document.querySelector('#summary').textContent.includes('is not a file of picks')")


def page_of(folder, project, *changes):
    """A page of the run `demo` whose rows are those of its clip `a` with these changes; the folder of the page."""
    values = values_of(project, "demo")
    rows = [{**values["rows"][0], **change} for change in changes]
    folder.mkdir(exist_ok=True)
    write_page(RunPage(folder, {**values, "rows": rows}))
    for row in filter(lambda row: row["film"] == "a.mp4", rows):
        shutil.copy(project.path("results/demo/a.mp4"), folder / row["film"])
    return folder


HOSTILE_NAMES = ["constructor", "toString", "valueOf", "__proto__", "hasOwnProperty"]


def test_names_that_every_object_of_javascript_knows_are_names(project, browser, tmp_path):
    changes = [{"name": name, "clip": name, "own": {"id": name, "seed": 1}} for name in HOSTILE_NAMES]
    seen = Visit(browser, page_of(tmp_path, project, *changes) / "index.html")
    assert seen.names() == HOSTILE_NAMES
    for name in HOSTILE_NAMES:
        assert seen.row(name).get_by_label(f"Note on {name}").input_value() == ""
        seen.row(name).get_by_role("button", name="Star").click()
    seen.page.reload()
    assert [json.loads(line)["mark"] for line in picked(seen)[1].splitlines()] == ["star"] * len(HOSTILE_NAMES)
    seen.close()


@pytest.mark.parametrize("stored", ["null", "[1]", '"text"', "{", '{"a": null, "b": 3}', '{"a": {"mark": "x", "links": 1}}'])
def test_a_page_does_not_trust_what_the_browser_has_stored(visit, stored):
    demo = visit()
    demo.page.evaluate("stored => localStorage.setItem(picks.place(page.runs[0]), stored)", stored)
    demo.page.reload()
    assert demo.names() == EXPECTED
    demo.row("a").get_by_role("button", name="Star").click()
    assert json.loads(picked(demo)[1].splitlines()[0])["mark"] == "star"


def test_picks_of_a_clip_that_had_no_film_yet_are_found_when_it_has_one(project, browser, visit, tmp_path):
    waiting = Visit(browser, page_of(tmp_path / "waiting", project, {"film": None, "state": "waiting"}) / "index.html")
    waiting.row("a").get_by_role("button", name="Star").click()
    (tmp_path / "picks.jsonl").write_text(picked(waiting)[1])
    waiting.close()
    demo = visit()
    demo.page.set_input_files("#imported", tmp_path / "picks.jsonl")
    demo.wait("document.querySelector('#summary').textContent.includes('picks of 1 films')")
    assert demo.row("a").get_by_role("button", name="Star").get_attribute("aria-pressed") == "true"


def test_a_film_that_cannot_be_played_is_named_and_the_others_play(project, browser, tmp_path):
    folder = page_of(tmp_path, project, {}, {"name": "bad", "clip": "bad", "film": "bad.mp4"})
    (folder / "bad.mp4").write_bytes(b"no video")
    seen = Visit(browser, folder / "index.html")
    for name in ("bad", "a"):
        seen.row(name).get_by_label("compare").check()
    seen.page.click("#compare")
    seen.wait("document.querySelector('#stage .failure')")
    assert seen.page.inner_text("#stage .failure") == "demo: bad cannot be played here: open bad.mp4 in another player"
    seen.page.evaluate("viewer.player.seek(2)")
    seen.page.click("#play")
    seen.wait("viewer.player.time > 2.2")
    seen.page.keyboard.press("Escape")
    seen.row("bad").get_by_role("button", name="Play bad,").click()
    seen.wait("document.querySelector('#rows .failure')")
    assert "open bad.mp4 in another player" in seen.row("bad").locator(".failure").inner_text()
    assert seen.row("bad").get_by_role("button", name="Play bad,").count() == 1  # its poster is there again
    seen.close()


def test_an_image_that_the_browser_cannot_show_keeps_its_poster(project, browser, tmp_path):
    source = {"name": "a.tiff", "file": "a.tiff", "poster": None}
    folder = page_of(tmp_path, project, {"source": source})
    Image.new("RGB", (8, 8)).save(folder / "a.tiff")
    seen = Visit(browser, folder / "index.html")
    seen.row("a").get_by_role("button", name="Play source").click()
    seen.page.wait_for_timeout(300)
    assert seen.page.locator("#rows video").count() == 0
    assert "source a.tiff" in seen.row("a").get_by_role("button", name="Play source").inner_text()
    seen.close()


def test_a_chain_is_a_strip_of_links_with_drift(visit):
    chain = visit("results/chain/index.html")
    assert chain.page.locator(".strip li").count() == 3
    assert "link 3, take 1 · seed" in chain.page.inner_text(".strip")
    curves = chain.page.locator(".curve svg")
    assert "Drift of the luma over 3 parts" in curves.nth(1).get_attribute("aria-label")


def test_shots_have_their_names_sources_and_seams(visit):
    shots = visit("results/shots/index.html")
    row = shots.row("town")
    assert row.locator(".pictures").get_by_role("button", name="Play source b.mp4").count() == 1
    names = [row.locator(f".strip li:nth-child({link}) .name").inner_text() for link in (1, 2, 3)]
    assert names == ["street", "crowd", "roofs"]
    links = row.locator(".strip li").all_inner_texts()
    assert "from true.mp4" in links[2] and "from" not in links[1]
    assert ["motion ×" in text for text in links] == [False, True, False]  # at a cut nothing goes on


def test_links_stand_beside_each_other_and_all_of_them_can_be_seen(project, browser, tmp_path):
    """Only the second link has takes, and only the third a source."""
    links = values_of(project, "shots")["rows"][0]["links"]
    links[1]["takes"] = [{**links[1]["takes"][0], "take": take} for take in (1, 2, 3)]
    folder = page_of(tmp_path, project, {"links": links})
    widths = []
    for width in (1280, 400):
        seen = Visit(browser, folder / "index.html", width=width)
        strip = seen.page.locator(".strip")
        assert len({round(one.bounding_box()["y"]) for one in strip.locator("li figure:first-of-type .poster").all()}) == 1
        widths.append([round(one.bounding_box()["width"]) for one in strip.locator("li").all()])
        last = strip.get_by_role("button", name="Star link 3")
        last.scroll_into_view_if_needed()
        box, right = last.bounding_box(), strip.evaluate("strip => strip.getBoundingClientRect().right")
        assert box["x"] + box["width"] <= right
        seen.close()
    assert widths[0] == widths[1]  # no link is squeezed


def test_seams_that_stall_or_jump_are_marked_and_the_worst_is_found_by_sorting(project, browser, tmp_path):
    link = values_of(project, "shots")["rows"][0]["links"][1]

    def film(name, *ratios):
        seams = [{**link["seam"], "motion_ratio": ratio} for ratio in ratios]
        return {"name": name, "clip": name, "links": [{**link, "link": n, "seam": seam} for n, seam in enumerate(seams, 2)]}

    films = [film("fine", 0.86, 1.02, None), film("faulty", 0.31, 1.9), film("worst", 0.6, 4.0), film("unmoved", None)]
    seen = Visit(browser, page_of(tmp_path, project, *films) / "index.html")
    texts = {name: seen.row(name).locator(".seam").all_inner_texts() for name in ("fine", "faulty", "worst")}
    assert texts["fine"] == ["motion × 0.86", "motion × 1.02", "motion × –"]
    assert texts["faulty"] == ["stalls × 0.31", "motion × 1.90"] and texts["worst"] == ["motion × 0.60", "jumps × 4.00"]
    assert seen.page.locator(".seam.faulty").all_inner_texts() == ["stalls × 0.31", "jumps × 4.00"]
    seen.page.select_option("#sort", "seam")
    seen.page.click("#direction")
    assert seen.names() == ["worst", "faulty", "fine", "unmoved"]
    seen.close()


def test_takes_of_a_clip_stand_together_and_the_starred_one_is_the_next_clip(visit, tmp_path):
    takes = visit("results/takes/index.html")
    assert takes.names() == ["x", "x.take2", "y", "y.take2"]
    assert "take 2" in takes.row("x.take2").inner_text() and "seed 8" in takes.row("x.take2").inner_text()
    takes.row("x.take2").get_by_role("button", name="Star").click()
    takes.row("y").get_by_role("button", name="Reject").click()
    (tmp_path / "picks.jsonl").write_text(text := picked(takes)[1])
    assert [json.loads(line)["take_of"] for line in text.splitlines()] == ["x", "x", "y", "y"]
    rows, _ = read_clips(str(tmp_path / "picks.jsonl"), "run next")
    assert [(row["id"], row["seed"], row["takes"]) for row in rows] == [("x.take2", 8, 1), ("y.take2", 8, 1)]
    rows, _ = read_clips({"films": str(tmp_path / "picks.jsonl")}, "run next")
    assert [row["video"] for row in rows] == ["results/takes/x.take2.mp4", "results/takes/y.take2.mp4"]


def test_takes_of_links_are_shown_and_a_starred_one_is_exported(project, visit, tmp_path):
    chain = visit("results/chain/index.html")
    assert chain.page.locator(".strip li").count() == 3
    assert [chain.page.locator(f".strip li:nth-child({link}) figure").count() for link in (1, 2, 3)] == [2, 2, 2]
    assert "link 2, take 2" in chain.page.locator(".picked").nth(1).inner_text()  # as the run's `picks` says
    chain.page.get_by_role("button", name="Star link 3, take 2").click()
    (line,) = picked(chain)[1].splitlines()
    assert json.loads(line)["picks"] == ["2: 2", "3: 2"]
    (tmp_path / "picks.jsonl").write_text(line)
    assert picks_by_clip(str(tmp_path / "picks.jsonl"))["long"] == ["2: 2", "3: 2"]


def test_several_runs_on_one_page_and_against_each_other(visit):
    common = visit("results/index.html")
    later = ["shots: town", "takes: x", "takes: x.take2", "takes: y", "takes: y.take2"]
    assert common.names() == ["bright: a", "bright: b", "chain: long", "demo: a", "demo: b", "demo: broken", *later]
    page = common.page
    page.select_option("#filter-run", "bright")
    assert common.names() == ["bright: a", "bright: b"]
    page.click("#runs")
    page.select_option("#run-a", label="demo")
    page.select_option("#run-b", label="bright")
    text = page.inner_text("#of-two-runs")
    assert "Clips in both runs: 2. Films: demo 3, bright 2." in text
    assert re.search(r"brighter\s+0\s+90\s+1 of 2", text) and not re.search(r"^seed", text, re.M)
    assert re.search(r"reference\.psnr\s+[\d.]+\s+[\d.]+", text)
    page.locator(".pairs").get_by_role("button", name="Compare").first.click()
    assert page.locator("#stage figcaption").all_inner_texts() == ["demo: a", "bright: a"]


def test_a_zip_of_the_results_works_elsewhere(project, browser, tmp_path):
    shutil.make_archive(tmp_path / "films", "zip", project.path("results/demo"))
    with zipfile.ZipFile(tmp_path / "films.zip") as archive:
        archive.extractall(tmp_path / "elsewhere")
    moved = Visit(browser, tmp_path / "elsewhere/index.html")
    assert moved.names() == EXPECTED
    moved.row("a").get_by_role("button", name="Play a,").click()
    moved.wait("document.querySelector('#rows video').currentTime > 0")
    assert moved.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    moved.close()


def test_the_common_page_is_where_it_is_asked_for(project, tmp_path):
    finish(project.start("-P", "-m", "stages.page", "results/bright", "-o", tmp_path / "look", program="python"))
    assert "results/bright/page/data.js" in (tmp_path / "look/index.html").read_text()
    both = ("-o", tmp_path / "look", "--single", tmp_path / "one.html")
    output = finish(project.start("-P", "-m", "stages.page", "results/bright", *both, program="python"), fails=2)[1]
    assert "are both given: leave one of them out" in output and not (tmp_path / "one.html").exists()


def test_the_report_of_snakemake_holds_the_page_with_its_films(project, browser, tmp_path):
    """The HTML report has it as a data URL in a frame, the zip as a file."""
    project.run("--cores", 2, "bright", "--report", tmp_path / "report.zip")
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("report/data/raw/")]
        archive.extractall(tmp_path)
        report = archive.read("report/report.html").decode()
    assert '"Films"' in report and '"labels": {"run": "bright"}' in report
    seen = Visit(browser, tmp_path / name)
    assert seen.names() == ["a", "b"]
    seen.row("b").get_by_role("button", name="Play b,").click()
    seen.wait("document.querySelector('#rows video').currentTime > 0")
    assert all(url.startswith("data:") for url in seen.requested[1:])
    seen.close()
    project.run("--cores", 2, "--report", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert all(f'"labels": {{"run": "{run}"}}' in text for run in ("demo", "bright", "chain", "takes"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(visit, scheme):
    """axe finds nothing serious: on the page, in the comparison, in the help, on a narrow screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page):
        found = axe.run(page, options={"preload": False}).response["violations"]  # it may not fetch the style again
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []

    common = visit("results/index.html", color_scheme=scheme)
    check(common.page)
    common.row("demo: a").locator("summary").click()
    for name in "ab":
        common.row(f"demo: {name}").get_by_label("compare").check()
    check(common.page)
    common.page.click("#compare")
    check(common.page)
    common.page.keyboard.press("Escape")
    common.page.click("#runs")
    check(common.page)
    common.page.keyboard.press("Escape")
    common.page.keyboard.press("?")
    check(common.page)
    narrow = visit("results/index.html", color_scheme=scheme, width=400)
    check(narrow.page)
    assert narrow.page.evaluate("document.documentElement.scrollWidth <= 400")
    narrow.page.click("#runs")
    check(narrow.page)


def test_the_theme_is_switched_and_kept(visit):
    demo = visit(color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = demo.page.evaluate(colour)
    demo.page.click("#theme")
    dark = demo.page.evaluate(colour)
    assert light != dark
    demo.page.reload()
    assert demo.page.evaluate(colour) == dark


def test_ten_thousand_films_are_not_loaded_at_once(project, browser, tmp_path):
    """Rows and posters near the window are in the document, and no film until it is played."""
    count = 10_000
    source = project.path("results/demo")
    values = values_of(project, "demo")
    made = values["rows"][0]
    rows = [{**made, "name": f"f{n:05d}", "own": {**made["own"], "id": f"f{n:05d}", "seed": n}} for n in range(count)]
    rows = [
        {**row, "clip": row["own"]["id"], "film": f"{row['name']}.mp4", "poster": f"{n}.jpg"} for n, row in enumerate(rows)
    ]
    folder = tmp_path / "many"
    (folder / "page/posters").mkdir(parents=True)
    poster = next((source / "page/posters").iterdir())
    names = [f"{n}.jpg" for n in range(count)]
    for name in [*names[:300], *names[-300:]]:
        (folder / "page/posters" / name).symlink_to(poster)
    (folder / f"{rows[-1]['name']}.mp4").symlink_to(source / "a.mp4")
    page = RunPage(folder, {**values, "rows": rows}, dict.fromkeys(names, ""))
    write_page(page)
    many = Visit(browser, folder / "index.html")
    assert many.page.inner_text("#summary") == "10000 films"
    many.page.wait_for_timeout(500)
    loaded = [url for url in many.requested if url.endswith(".jpg")]
    assert 0 < len(loaded) < 150 and not any(url.endswith(".mp4") for url in many.requested)
    assert many.page.locator("#rows article").count() <= 80 and many.page.locator("video").count() == 0
    many.page.select_option("#sort", "seed")
    many.page.click("#direction")
    assert many.names()[0] == "f09999"
    many.page.locator("#rows article").first.get_by_role("button", name="Play f09999,").click()
    many.wait("document.querySelector('#rows video').currentTime > 0")
    for _ in range(5):  # on the way down, rows that are left behind leave the document
        many.page.mouse.wheel(0, 20_000)
        many.page.wait_for_timeout(200)
    assert many.page.locator("#rows article").count() <= 120 and many.page.locator("video").count() == 0
    assert sum(url.endswith(".mp4") for url in many.requested) <= 2  # a film may be read by ranges
    many.close()
