"""Kinemake as a module of another workflow, which has a rule after its films."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.workflow.conftest import ROOT, frame_count

OUTER = """
rule all:
    input:
        "sums.txt",

onstart:
    print("the other workflow starts")

{before}
module kinemake:
    snakefile: "{snakefile}"
    config: {config}
{more}

use rule * from kinemake as kine_*

rule sums:
    input: kinemake.FILMS["demo"]
    output: "sums.txt"
    shell: "sha256sum {{input}} > {{output}}"

onsuccess:
    print("the other workflow succeeds")
"""
EXAMPLE = ROOT / "examples/as_module"


@pytest.fixture
def outer(toy_project):
    """A function that writes another workflow beside the toy project's files and returns its Snakefile."""

    def write(more: str = "", before: str = "", **config) -> str:
        clips = [{"id": "one", "video": "a.mp4"}, {"id": "two", "video": "b.mp4", "brighter": 60}]
        run = {"recipe": "toy", "clips": clips, "model": "grey", "scores": []}
        config = {"models": toy_project.models, "runs": {"demo": run}, **config}
        toy_project.path("outer").mkdir(exist_ok=True)
        path = toy_project.path("outer/Snakefile")
        snakefile = toy_project.root / "Snakefile"
        path.write_text(OUTER.format(snakefile=snakefile, config=repr(config), more=more, before=before))
        return "outer/Snakefile"

    return write


def sums(project) -> list[str]:
    """The films in the file that the rule of the other workflow made; their checksums are true."""
    subprocess.run(["sha256sum", "--check", "--quiet", "sums.txt"], cwd=project.folder, check=True)
    return [line.split()[1] for line in project.path("sums.txt").read_text().splitlines()]


def run(project, snakefile, *more, **options) -> str:
    return project.run("--snakefile", snakefile, "--cores", 2, *more, **options)


def test_films_are_made_for_the_rules_of_another_workflow(toy_project, outer):
    snakefile = outer()
    report = run(toy_project, snakefile, "--dry-run")
    assert not toy_project.path("results").exists()  # a dry run writes nothing
    process = toy_project.start("--snakefile", snakefile, "--cores", 2)
    out, report = process.communicate()
    assert process.returncode == 0, report
    assert "the other workflow starts" in out + report and "the other workflow succeeds" in out + report
    assert re.search(r"items: \d+ made, \d+ reused from the store, 0 failed", out + report)  # Kinemake's own onsuccess
    assert sums(toy_project) == ["results/demo/one.mp4", "results/demo/two.mp4"]
    assert frame_count(toy_project.path("results/demo/one.mp4")) == 3
    assert toy_project.path("results/demo/config.yaml").is_file()
    before = toy_project.files()
    assert "Nothing to be done" in run(toy_project, snakefile)
    assert toy_project.files() == before


def test_a_film_that_changes_is_made_again_and_no_other(toy_project, outer):
    run(toy_project, outer())
    path = toy_project.path(outer())
    path.write_text(path.read_text().replace("60", "90"))
    jobs = toy_project.output("--snakefile", "outer/Snakefile", "--dry-run", "--cores", 2)
    run(toy_project, "outer/Snakefile")
    assert "film=two.mp4" in jobs and "film=one.mp4" not in jobs
    assert "Nothing to be done" in run(toy_project, "outer/Snakefile")


@pytest.mark.parametrize(
    "more, folder",
    [
        ('    prefix: "sub"', "sub/results"),
        ('    replace_prefix: {"results/": "films/"}', "films"),
        ('    replace_prefix: {"results": "films/of/all"}', "films/of/all"),
    ],
)
def test_results_are_where_the_module_statement_puts_them(more, folder, toy_project, outer):
    snakefile = outer(more)
    run(toy_project, snakefile)
    assert sums(toy_project) == [f"{folder}/demo/one.mp4", f"{folder}/demo/two.mp4"]
    assert not toy_project.path("results").exists()
    assert (toy_project.path(folder) / "store").is_dir()
    assert "Nothing to be done" in run(toy_project, snakefile)


def test_a_prefix_moves_a_store_of_ones_own_too(toy_project, outer):
    run(toy_project, outer('    prefix: "sub"', store="kept"))
    assert toy_project.path("sub/kept").is_dir() and not toy_project.path("kept").exists()


def test_results_that_would_be_taken_apart_are_refused(toy_project, outer):
    process = toy_project.start("--snakefile", outer('    replace_prefix: {"results/demo/": "x/"}'), "--cores", 1)
    assert "replace_prefix moves results/demo to x without its neighbours" in process.communicate()[1]


@pytest.mark.parametrize(("key", "value"), [("results", 3), ("store", ["a"]), ("runs", 3)])
def test_a_wrong_type_in_the_config_of_a_module_is_reported_in_one_sentence(toy_project, outer, key, value):
    process = toy_project.start("--snakefile", outer("", **{key: value}), "--cores", 1)
    error = process.communicate()[1]
    assert process.returncode == 1 and f"error: config.{key} is {value!r}: it must be " in error
    assert "Traceback" not in error


@pytest.mark.parametrize("config", ["{}", "None"])
def test_a_module_without_a_config_is_refused(config, toy_project):
    toy_project.path("config.yaml").write_text("mine: 1\n")
    text = 'module kinemake:\n    snakefile: "{}"\n    config: {}\nuse rule * from kinemake as kine_*\n'
    toy_project.path("Outer").write_text(text.format(toy_project.root / "Snakefile", config))
    process = toy_project.start("--snakefile", "Outer", "--cores", 1)
    error = process.communicate()[1]
    assert process.returncode == 1 and "the module statement of Kinemake has no config" in error


def test_what_the_other_workflow_forces_is_its_own(toy_project, outer):
    snakefile = outer()
    run(toy_project, snakefile)
    first = toy_project.path("sums.txt").stat().st_mtime_ns
    run(toy_project, snakefile, "--forcerun", "sums")
    assert toy_project.path("sums.txt").stat().st_mtime_ns > first


def test_a_film_that_fails_is_reported_by_the_other_workflow(toy_project, outer):
    toy_project.path("b.mp4").write_text("no video")
    report = run(toy_project, outer(), fails=1)
    assert "film or job" in report and "b.mp4" in report


def test_two_modules_make_films_side_by_side(toy_project, outer):
    snakefile = toy_project.path(outer())
    config = snakefile.read_text().split("config: ")[1].splitlines()[0]
    snakefile.write_text(
        snakefile.read_text()
        + f'\nmodule other:\n    snakefile: "{toy_project.root / "Snakefile"}"\n    config: {config}\n    prefix: "other"\n'
        + '\nuse rule * from other as other_*\n\nrule both:\n    input: "sums.txt", other.FILMS["demo"]\n'
    )
    run(toy_project, "outer/Snakefile", "both")
    assert toy_project.path("other/results/demo/one.mp4").is_file() and len(sums(toy_project)) == 2


def test_images_and_environments_are_those_of_kinemake(toy_project, outer):
    """Not in the folder of the other workflow."""
    snakefile = outer()
    path = toy_project.path(snakefile)
    path.write_text(
        path.read_text()
        + "\nfor one in workflow.rules:\n    if one.name == 'kine_demo.concat.film':\n"
        + "        print('FOUND', one.container_img, one.conda_env)\n"
    )
    out = toy_project.output("--snakefile", snakefile, "--dry-run", "--cores", 1)
    assert f"{toy_project.root}/containers/concat.sif" in out and f"{toy_project.root}/envs/frames.yaml" in out


def test_the_example_runs(toy_project):
    """examples/as_module, with the shipped model and fewer steps."""
    folder = toy_project.path("example/examples/as_module")
    shutil.copytree(EXAMPLE, folder)
    snakefile = folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("../../Snakefile", str(ROOT / "Snakefile")))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["kinemake"]["runs"]["waves"] |= {"fuse": True, "scores": []}
    config["kinemake"]["runs"]["waves"]["options"] |= {"steps": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    toy_project.folder, toy_project.root = folder, ROOT
    run(toy_project, "Snakefile")
    assert {line.split()[1] for line in (folder / "checksums.txt").read_text().splitlines()} == {
        "results/waves/red.mp4",
        "results/waves/blue.mp4",
    }
