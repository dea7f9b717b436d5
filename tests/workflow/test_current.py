"""Which films are current, which jobs run again, and how a run ends by a signal."""

import hashlib
import json
import os
import random
import re
import signal
import time

import pytest

from examples import toy_family
from stages.plan.scheduler import METHOD
from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import Project, finish, frame_count, item_counts

FAR_FUTURE = 4_000_000_000  # seconds since 1970: the year 2096


@pytest.fixture
def project(toy_project):
    """A project with two clips of the toy family."""
    configure(toy_project)
    return toy_project


def configure(project, names="ab", results="results", fuse=True, **options):
    """A run that is fused, and so starts two processes instead of five, where a test does not look at its jobs."""
    clips = [{"id": name, "video": f"{name}.mp4"} for name in names]
    project.configure(results, demo={"recipe": "toy", "fuse": fuse, "clips": clips, "model": "grey", "options": options})


def job_counts(stderr):
    """Number of jobs of each rule in the job table of a run or dry run of Snakemake."""
    rows = re.search(r"job +count\n[- ]+\n(.+?)\ntotal", stderr, re.DOTALL)[1]
    return dict(row.split() for row in rows.splitlines())


def statuses(project, job):
    return [line["status"] for line in project.log("demo", job) if line["event"] == "item"]


def test_a_film_stays_when_its_source_is_removed(project):
    project.run("--cores", 1)
    project.path("a.mp4").unlink()
    stderr = project.run("--cores", 1)
    assert "a.mp4 is not there; results/demo/a.mp4, which was made of it, stays" in stderr
    assert "Nothing to be done" in stderr and project.path("results/demo/a.mp4").is_file()


def test_a_film_stays_when_a_new_run_of_it_fails(project):
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    project.path("a.mp4").write_bytes(b"no video")
    stderr = project.run("--cores", 1, fails=1)
    assert film.read_bytes() == before and "a.mp4 is not a readable video" in stderr
    zoo.plain(project.folder, "a.mp4", frames=4, size=(32, 32))
    assert "Nothing to be done" in project.run("--cores", 1)


def test_file_times_do_not_outdate_a_film(project):
    os.utime(project.path("a.mp4"), (FAR_FUTURE, FAR_FUTURE))
    project.run("--cores", 1)
    os.utime(project.path("b.mp4"), (FAR_FUTURE, FAR_FUTURE))
    os.utime(project.path("results/demo/a.mp4"), (0, 0))
    assert "Nothing to be done" in project.run("--cores", 1)


def test_an_edited_film_is_reported_and_made_again(project):
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    film.write_bytes(before + b"edited")
    stderr = project.run("--cores", 1)
    assert "results/demo/a.mp4 was changed after it was made, and is made again" in stderr
    assert film.read_bytes() == before


def test_a_removed_film_description_is_restored(project):
    project.run("--cores", 1)
    project.path("results/demo/a.json").unlink()
    project.run("--cores", 1)
    assert project.read("demo/a.json")


def test_a_film_from_the_store_has_the_provenance_of_its_own_run(project):
    project.run("--cores", 1)
    before = project.path("results/demo/a.mp4").read_bytes()
    project.path("a.mp4").rename(project.path("renamed.mp4"))
    project.models["gray"] = {"family": "toy", "path": "grey"}
    project.configure(other={"recipe": "toy", "clips": [{"id": "c", "video": "renamed.mp4"}], "model": "gray"})
    assert item_counts(project.run("--cores", 1)) == (0, 5, 0)
    records = project.records("other/c.json")
    assert records["extract_frames"]["files"] == ["renamed.mp4"]
    assert records["generate"]["files"] == ["results/other/steps/c/e.safetensors"]
    assert records["concat"]["files"] == ["results/other/steps/c/clip.json"]
    assert records["generate"]["model"]["name"] == "gray" == project.read("other/steps/c/clip.json")["fields"]["model"]
    assert project.path("results/other/c.mp4").read_bytes() == before
    assert "Nothing to be done" in project.run("--cores", 1)


def test_a_run_waits_for_the_films_that_it_reads(project):
    def configure(**options):
        toys = {"recipe": "toy", "model": "grey"}
        later = {**toys, "clips": [{"id": n, "video": f"./results/demo/{n}.mp4"} for n in "ab"]}
        demo = {**toys, "clips": [{"id": n, "video": f"{n}.mp4"} for n in "ab"], "options": options}
        project.configure(again={**later, "clips": [{"video": "results/later/a.mp4"}]}, later=later, demo=demo)

    def source():
        (film,) = (record for record in project.read("again/a.json")["provenance"] if record["stage"] == "extract_frames")
        return film["inputs"]["video"]

    def digest(name):
        return [hashlib.sha256(project.path(name).read_bytes()).hexdigest()]

    configure()
    project.run("--cores", 2, "again")
    assert source() == digest("results/later/a.mp4")
    configure(brighter=60)
    project.run("--cores", 2)
    assert "Nothing to be done" in project.run("--cores", 2)
    (record,) = project.read("later/steps/a/frames.json")["provenance"]
    assert record["inputs"]["video"] == digest("results/demo/a.mp4")
    assert zoo.rgb_by_ffmpeg(project.path("results/demo/a.mp4"), (32, 32)).mean() == pytest.approx(160, abs=2)
    configure(brighter=70)
    project.path("a.mp4").write_bytes(b"no video")
    stderr = project.run("--cores", 2, fails=1)
    assert "later.extract_frames.000" in stderr and "it waits for ./results/demo/a.mp4, which was not made" in stderr


def test_a_job_that_failed_after_a_change_runs_again(project):
    project.run("--cores", 1)
    configure(project, brighter=50)
    tone = project.path("grey/tone.txt")
    tone.rename(project.path("away"))
    project.run("--cores", 1, fails=1)
    project.path("away").rename(tone)
    project.run("--cores", 1)
    rgb = zoo.rgb_by_ffmpeg(project.path("results/demo/a.mp4"), (32, 32))
    assert rgb.mean() == pytest.approx(150, abs=2)


def test_a_job_of_a_killed_run_publishes_nothing_in_a_later_run(project):
    configure(project, fuse=False, seconds=10)
    process = project.start("--cores", 1)
    log = project.path("results/demo/steps/logs/demo.encode.000.log")
    wait_for(log.exists, "encode did not begin")
    process.kill()
    process.wait()
    finish(project.start("--cores", 1, "--unlock"))
    before = log.open()  # of the job that goes on
    configure(project, fuse=True, num_frames=5)
    assert project.run("--cores", 1)
    films = {name: project.path(f"results/demo/{name}.mp4").read_bytes() for name in "ab"}
    wait_for(lambda: "error: the run that started this job has ended" in before.read(), "the job did not end", 60)
    assert "Nothing to be done" in project.run("--cores", 1)
    configure(project, fuse=True, num_frames=5, brighter=20)  # which reads the files that encode has left
    assert item_counts(project.run("--cores", 1)) == (3, 3, 0)
    for name, film in films.items():
        assert project.path(f"results/demo/{name}.mp4").read_bytes() != film
        assert frame_count(project.path(f"results/demo/{name}.mp4")) == 5


def test_a_film_can_be_a_target(project):
    project.run("--cores", 1, "results/demo/b.mp4")
    assert not project.path("results/demo/a.mp4").exists()
    assert item_counts(project.run("--cores", 1, "results/demo/b.mp4")) == (0, 0, 0)
    project.run("--cores", 1)
    assert project.path("results/demo/a.mp4").exists()
    for brighter in (20, 30, 40):  # the film exists, but was made with other options
        configure(project, brighter=brighter)
        project.run("--cores", 1, "results/demo/b.mp4")
        rgb = zoo.rgb_by_ffmpeg(project.path("results/demo/b.mp4"), (32, 32))
        assert rgb.mean() == pytest.approx(100 + brighter, abs=2)


def test_again_makes_the_named_jobs_without_the_store(project):
    configure(project, fuse=False)
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    assert item_counts(project.run("--cores", 1, "--config", "again=[all]"))[:2] == (10, 0)
    assert "Nothing to be done" in project.run("--cores", 1)
    project.run("--cores", 1, "--config", "again=[demo.generate.000]")
    assert statuses(project, "generate.000") == ["made", "made"]
    assert statuses(project, "decode.000") == ["reused", "reused"]  # from identical latents
    assert film.read_bytes() == before and "Nothing to be done" in project.run("--cores", 1)


def test_a_run_starts_the_stages_of_its_checkout(project):
    """Programs and modules of the same names on the PATH and in the working folder are not used."""
    folder = project.path("bin")
    folder.mkdir()
    for name in ("extract_frames", "encode", "generate", "decode", "concat", "fetch"):
        (folder / name).write_text("#!/bin/sh\nexit 7\n")
        (folder / name).chmod(0o755)
    project.path("stages").mkdir()
    project.path("stages/__init__.py").write_text("raise SystemExit(7)")
    project.run("--cores", 1, path=folder)
    assert project.path("results/demo/a.mp4").is_file()


def test_stages_of_other_code_than_the_plan_refuse_to_run(project):
    """Such stages come from an older image, or from a checkout that changed during the run."""
    root = toy_family.checkout(project.folder / "checkout")
    changing = Project(project.folder, project.models, root=root)
    configure(changing, fuse=False, seconds=2)
    process = changing.start("--cores", 1)
    while not list(project.path("results").rglob("e.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    with open(root / "stages/score.py", "a") as file:
        file.write("# something else\n")
    _, stderr = finish(process, fails=1)
    assert "is not that of the run's plan" in stderr and "leave the code alone while a run is under way" in stderr
    assert not project.path("results/demo/a.mp4").exists()
    changing.run("--cores", 1)
    assert project.path("results/demo/a.mp4").is_file()


def test_touch_reports_no_job_as_dead(project):
    stderr = project.run("--cores", 1, "--touch")
    assert "items: 0 made" in stderr and "killed" not in stderr


def test_the_scheduler_of_a_run_has_one_timer_at_a_time(project):
    """tests/plan/test_scheduler.py shows what for."""
    text = (project.root / "Snakefile").read_text()
    said = f"print({METHOD!r} in vars(workflow.scheduler), file=sys.stderr)"
    snakefile = project.root / "Snakefile.timers"
    snakefile.write_text(text.replace("onsuccess:\n", f"onsuccess:\n    {said}\n"))
    assert "\nTrue\n" in project.run("--cores", 1, "--touch", "--snakefile", snakefile)


def test_the_files_that_describe_a_run_are_updated_without_other_jobs(project):
    project.run("--cores", 1)
    configure(project, names="a")
    before = project.files()
    assert job_counts(project.output("--cores", 1, "-n")) == {"demo.describe": "1", "all": "1"}
    assert project.files() == before
    assert item_counts(project.run("--cores", 1)) == (0, 0, 0)
    assert [json.loads(line)["id"] for line in project.path("results/demo/clips.jsonl").open()] == ["a"]
    assert "Nothing to be done" in project.run("--cores", 1)
    configure(project, names="a", seconds=0.1)  # this changes no film
    project.run("--cores", 1, "results/demo/a.mp4")
    assert "seconds: 0.1" in project.path("results/demo/config.yaml").read_text()


@pytest.mark.parametrize("arguments", [["-j", 2], ["--cores", 1, "--resources", "gpu=2"]])
def test_a_dry_run_lists_the_jobs_of_the_run(project, arguments):
    configure(project, fuse=False)
    dry = job_counts(project.output(*arguments, "-n"))
    assert dry["demo.generate.001"] == "1" and job_counts(project.run(*arguments)) == dry


def test_a_run_can_end_at_a_stage(project):
    configure(project, fuse=False)
    project.run("--cores", 1, "demo.generate")
    steps = {path.name for path in project.path("results/demo/steps/a").iterdir()}
    assert "l.safetensors" in steps and "clip.json" not in steps
    assert "Nothing to be done" in project.run("--cores", 1, "demo.generate")
    dry = job_counts(project.output("--cores", 1, "-n", "--until", "demo.decode"))
    assert set(dry) == {"demo.decode.000", "demo.decode"}
    assert job_counts(project.run("--cores", 1, "demo.concat"))["demo.concat.000"] == "1"
    for target in ("demo", "demo.extract_frames", "demo.generate", "demo.concat"):
        assert "Nothing to be done" in project.run("--cores", 1, target)


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        (["--until", "generate"], "--until names 'generate', .* a stage of a run, such as demo.generate, or a job"),
        (["--omit-from", "demo.decode"], "--omit-from names 'demo.decode', .* that you want, such as demo.generate, or"),
        (["--delete-all-output"], "--delete-all-output and .* delete no result here: remove the folder of the run"),
        (
            ["--delete-temp-output"],
            "--delete-all-output and --delete-temp-output delete no result here: remove the folder of the run",
        ),
        (["results/demo/c.mp4"], "results/demo/c.mp4 is not the film of a clip: planned are results/demo/a.mp4, "),
    ],
)
def test_unsupported_snakemake_options_are_reported_in_one_sentence(project, option, pattern):
    message = project.run("--cores", 1, *option, fails=1)
    assert re.search(f"error: {pattern}", message) and "Traceback" not in message and "Exception" not in message


@pytest.mark.parametrize("results", ["./my results/", "../{name}/films", "{folder}/films", "{folder}/../films"])
def test_a_film_target_may_have_any_spelling_of_its_path(project, results):
    results = results.format(name=project.folder.name, folder=project.folder)
    configure(project, results=results)
    film = os.path.join(os.path.normpath(project.folder / results), "demo/b.mp4")
    project.run("--cores", 1, film)
    assert os.path.isfile(film)
    for path in (os.path.relpath(film, project.folder), f"./{os.path.relpath(film, project.folder)}"):
        assert "Nothing to be done" in project.run("--cores", 1, path)


def test_snakemake_force_options_name_the_option_again(project):
    project.run("--cores", 1)
    for option in (["-F"], ["-R", "all"], ["-f"], ["-f", "demo"], ["-F", "results/demo/a.mp4"]):
        assert "--config 'again=[NAME, ...]'" in project.run("--cores", 1, *option, fails=1)


def test_sigterm_ends_a_run_without_a_traceback(project):
    rng = random.Random(0)
    for _ in range(int(os.environ.get("KINEMAKE_SIGTERMS", "3"))):
        configure(project, fuse=False, seconds=0.3, brighter=rng.randrange(200))
        process = project.start("--cores", 2)
        time.sleep(rng.uniform(2, 12))
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert "Traceback" not in stderr, stderr
    configure(project, brighter=30)
    project.run("--cores", 2)
    assert zoo.rgb_by_ffmpeg(project.path("results/demo/a.mp4"), (32, 32)).mean() == pytest.approx(130, abs=2)
