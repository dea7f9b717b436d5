"""The code of docs/extending.md is written into a copied checkout and works there."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples import toy_family
from tests import zoo
from tests.workflow.conftest import Project, finish, preloaded_projects  # noqa: F401

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^`([^`\n]+)`(, new| has)?:\n|^```(python|diff)\n(.*?)^```$", re.M | re.S)
SIDE = 32  # pixels of the source


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str):
    """Yield the code blocks of a section: the file, its kind ("new", "changed" or "has"), the language and the code."""
    path = kind = ""
    for name, note, language, code in BLOCK.findall(section(title)):
        if name:
            path, kind = name, note
        else:
            yield path, kind.strip(" ,") or "changed", language, code


def apply(title: str, checkout: Path) -> None:
    """Write the code of a section into a checkout."""
    for name, kind, _, code in blocks(title):
        path = checkout / name
        if kind == "new":
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
        elif kind == "changed":
            lines = code.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
            text = path.read_text()
            assert text.count(before) == 1, f"{name} has not once:\n{before}"
            path.write_text(text.replace(before, after))


def digests(checkout: Path) -> dict[str, str]:
    """Digests of the files of a checkout that are not generated, by path."""
    generated = [*checkout.glob("schemas/*"), *(checkout / "docs" / name for name in ("options.md", "config.md"))]
    files = [path for path in checkout.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {
        str(path.relative_to(checkout)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path not in generated
    }


def changed_files(before: dict[str, str], checkout: Path) -> set[str]:
    """The files of `before` whose digests have changed."""
    after = digests(checkout)
    return {name for name, digest in before.items() if after.get(name) != digest}


@pytest.fixture(scope="module")
def plain_checkout(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A checkout with the example family, and the digests of its files from before the family was added."""
    folder = tmp_path_factory.mktemp("extending") / "checkout"
    folder.mkdir()
    for name in ("stages", "docs", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = digests(folder)
    shutil.rmtree(folder)
    toy_family.checkout(folder)
    for name in ("docs", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder, before


@pytest.fixture(scope="module")
def project(plain_checkout, tmp_path_factory) -> Project:
    """A project with films of the example family by three recipes that do not know it."""
    (models,) = (block for block in yaml_blocks("A model family") if "models" in block)
    project = Project(tmp_path_factory.mktemp("project"), models["models"], root=plain_checkout[0])
    toy_family.weights(project.path("gray"))
    zoo.plain(project.folder, "a.mp4", frames=4, size=(SIDE, SIDE))
    project.configure(**RUNS)
    project.run("--cores", 2)
    return project


VIDEO = {"video": "a.mp4", "prompt": "a wave"}
RUNS = {
    "goes-on": {"recipe": "v2v", "clips": [{"id": "one", **VIDEO}], "model": "gray", "options": {"brighter": 10}},
    "links": {"recipe": "chain", "clips": [{"id": "two", **VIDEO}], "model": "gray", "options": {"links": 2}},
    "words": {"recipe": "text2video", "clips": [{"id": "three", "prompt": "gray"}], "model": "gray"},
}


def yaml_blocks(title: str) -> list[dict]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", section(title), re.S)]


def frame_tones(project: Project, film: str, side: int = SIDE):
    """The tone of each frame, by the program ffmpeg."""
    return zoo.rgb_by_ffmpeg(project.path(f"results/{film}.mp4"), (side, side)).mean((1, 2, 3))


def planned_stages(project: Project, *arguments) -> set[str]:
    """The jobs of a dry run, as RUN.STAGE, except those that check weights or describe a run."""
    rules = re.findall(r"^(?:local)?rule ([a-z-]+\.[a-z_]+)", project.output("-n", "--cores", 2, *arguments), re.M)
    return {name for name in rules if not name.endswith(".describe") and not name.startswith("weights.")}


def test_code_of_the_example_family_in_docs_extending_is_its_code():
    quoted = [(name, code) for name, kind, _, code in blocks("A model family") if kind == "has"]
    assert len(quoted) == 2
    for name, code in quoted:
        assert code in (ROOT / name).read_text(), name


def test_a_new_family_serves_three_recipes_without_a_changed_file(project, plain_checkout):
    checkout, before = plain_checkout
    assert changed_files(before, checkout) == set()
    assert frame_tones(project, "goes-on/one") == pytest.approx([110] * 3, abs=2)  # 8 bits of luma
    assert frame_tones(project, "links/two") == pytest.approx([100] * 5, abs=2)  # the frame at the seam once
    assert frame_tones(project, "words/three") == pytest.approx([100] * 3, abs=2)


def test_a_new_option_changes_one_file_and_outdates_no_film(project, plain_checkout, tmp_path):
    checkout = shutil.copytree(plain_checkout[0], tmp_path / "checkout")
    before = digests(checkout)
    apply("An option", checkout)
    extended = Project(project.folder, project.models, root=checkout)
    assert changed_files(before, checkout) == {"stages/families/toy/options.py"}
    assert planned_stages(extended) == set()
    outdated = {f"{run}.{stage}" for run in ("goes-on", "words") for stage in ("generate", "decode", "concat")}
    outdated |= {"links.fused", "links.concat"}
    assert planned_stages(extended, "--config", "options={darker: 5}") == outdated
    assert "--darker" in finish(extended.start("--help", program="generate"))[0]
    finish(extended.start("-m", "docs.generate", program="python"))
    assert "Taken from the tone" in (checkout / "docs/options.md").read_text()
    assert "darker" in (checkout / "schemas/clip.schema.json").read_text()
    assert changed_files(before, checkout) == {"stages/families/toy/options.py"}


def test_docs_output_has_every_file_of_a_run(project):
    """Only the store has other files."""
    known = [re.compile(path) for path in output_paths()]
    for path in project.path("results").rglob("*"):
        name = path.relative_to(project.folder).as_posix()
        if path.is_file() and not name.startswith("results/store/"):
            assert any(pattern.fullmatch(name) for pattern in known), name


def test_last_frames_are_where_docs_output_says(project):
    for path in ("goes-on/steps/one/clip.last.png", "links/two/video_02_two.last.png", "words/steps/three/clip.last.png"):
        assert project.path(f"results/{path}").is_file()


def output_paths() -> list[str]:
    """The paths of the tree in docs/output.md as regular expressions."""
    (tree,) = re.findall(r"```\n(results/\n.*?)```", (ROOT / "docs" / "output.md").read_text(), re.S)
    above, paths = {}, []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = len(line) - len(line.lstrip())
        above = {other: folder for other, folder in above.items() if other < depth} | {depth: name}
        paths.append(re.escape("".join(above.values())))
    words = {"NNNNNN": r"[0-9]{6}", "NN": r"[0-9]{2}"} | dict.fromkeys(("CLIP", "NAME", "MODEL", "JOB", "RUN"), r"[^/]+")
    return [re.sub("|".join(words), lambda match: words[match[0]], path) for path in paths]


def test_a_new_recipe_changes_no_existing_file(project, plain_checkout, tmp_path):
    checkout = shutil.copytree(plain_checkout[0], tmp_path / "checkout")
    before = digests(checkout)
    apply("A recipe", checkout)
    assert changed_files(before, checkout) == set()
    twice = Project(tmp_path / "project", project.models, root=checkout)
    toy_family.weights(twice.path("gray"))
    twice.configure(both={"recipe": "twice", "clips": [{"id": "one", "prompt": "gray"}], "model": "gray"})
    twice.run("--cores", 2)
    assert frame_tones(twice, "both/one") == pytest.approx([100] * 3 + [150] * 2, abs=2)


def test_a_new_stage_with_a_model_changes_three_files(plain_checkout, tmp_path):
    checkout = shutil.copytree(plain_checkout[0], tmp_path / "checkout")
    before = digests(checkout)
    apply("A stage", checkout)
    assert changed_files(before, checkout) == {
        "stages/runtime/stages.py",
        "stages/plan/families.py",
        "stages/plan/recipes/v2v.py",
    }
    (config,) = yaml_blocks("A stage")
    project = Project(tmp_path / "project", config["models"], root=checkout)
    toy_family.weights(project.path("gray"))
    project.path("twofold").mkdir()
    project.path("twofold/factor.txt").write_text("2")
    zoo.plain(project.folder, "a.mp4", frames=4, size=(48, SIDE))
    project.configure(**config["runs"])
    project.run("--cores", 2)
    assert frame_tones(project, "large/a", 2 * SIDE) == pytest.approx([100] * 3, abs=2)
    subprocess.run([sys.executable, "-m", "stages.upscale", "--help"], cwd=checkout, check=True, capture_output=True)
