"""The films of a run are those of its config after any history: random changes, compared with films made from nothing."""

import os
import random
import shutil
import signal
import threading
import time

import pytest

from examples import toy_family
from tests import zoo
from tests.workflow.conftest import Project, finish

SIZES = ((32, 32), (48, 48), (64, 64))  # of the possible contents of a source
BRIGHTER = (10, 20, 30)
SEEDS, STEPS = (int(number) for number in os.environ.get("KINEMAKE_WALKS", "2x10").split("x"))
DATES = (0, 1_000_000_000, 2_000_000_000, 4_000_000_000)  # the last two lie in the future
MODEL = {"grey": {"family": "toy", "path": "grey"}}
FAIL = """        if os.path.exists("fail"):
            raise JobError("it was told to fail", "remove that file")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout with the toy family, whose generate fails if the file `fail` exists."""
    root = toy_family.checkout(tmp_path_factory.mktemp("walk") / "checkout")
    options = root / "stages/families/toy/options.py"
    text = options.read_text().replace(
        "import time\n", "import os\nimport time\n\nfrom stages.runtime.errors import JobError\n"
    )
    head, generate = text.split("class Generate(Painter):\n    def make(self, work):\n")
    options.write_text(f"{head}class Generate(Painter):\n    def make(self, work):\n{FAIL}{generate}")
    return root


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Videos of different sizes."""
    folder = tmp_path_factory.mktemp("contents")
    return [zoo.plain(folder, f"{width}x{height}.mp4", frames=4, size=(width, height)) for width, height in SIZES]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, checkout, contents):
    """The film of each content with each option, made from nothing."""
    project = Project(tmp_path_factory.mktemp("fresh"), MODEL, root=checkout)
    toy_family.weights(project.path("grey"))
    rows = [
        {"id": f"{content}-{tone}", "video": str(path), "brighter": tone}
        for content, path in enumerate(contents)
        for tone in BRIGHTER
    ]
    project.configure(film={"recipe": "toy", "clips": rows, "model": "grey"})
    project.run("--cores", 2)
    return {
        (content, tone): project.path(f"results/film/{content}-{tone}.mp4").read_bytes()
        for content in range(len(contents))
        for tone in BRIGHTER
    }


class Walk:
    """A project, the random changes to it, and the contents that its films must have."""

    def __init__(self, project, contents, seed):
        self.project, self.contents, self.random = project, contents, random.Random(seed)
        self.results, self.history, self.fuse = "results", [], seed % 2 == 0
        self.clips = [{"id": name, "source": name, "brighter": 10} for name in ("a", "b", "c")]
        self.content_of = {}
        for number, name in enumerate("abcd"):
            self.replace(name, number % len(contents))
        toy_family.weights(project.path("grey"))

    def replace(self, name, content):
        """Give a source another content."""
        shutil.copy(self.contents[content], self.project.path(f"{name}.mp4"))
        self.content_of[name] = content

    def configure(self):
        rows = [{"id": clip["id"], "video": f"{clip['source']}.mp4", "brighter": clip["brighter"]} for clip in self.clips]
        run = {"recipe": "toy", "fuse": self.fuse, "clips": rows, "model": "grey"}
        self.project.configure(results=self.results, store="store", film=run)

    def film(self, clip):
        return self.project.path(f"{self.results}/film/{clip['id']}.mp4")

    # changes between two runs

    def change_option(self):
        self.random.choice(self.clips)["brighter"] = self.random.choice(BRIGHTER)

    def change_source(self):
        self.replace(self.random.choice("abcd"), self.random.randrange(len(self.contents)))

    def rewrite_source(self):
        name = self.random.choice("abcd")
        self.replace(name, self.content_of[name])

    def change_date(self):
        paths = [self.project.path(f"{self.random.choice('abcd')}.mp4"), *map(self.film, self.clips)]
        paths += self.project.path(self.results).rglob("*.safetensors")
        if (path := self.random.choice(paths)).exists():
            os.utime(path, (date := self.random.choice(DATES), date))

    def remove_store(self):
        shutil.rmtree(self.project.path("store"), ignore_errors=True)

    def remove_intermediates(self):
        steps = self.project.path(f"{self.results}/film/steps")
        shutil.rmtree(self.random.choice([steps, steps / self.random.choice(self.clips)["id"]]), ignore_errors=True)

    def remove_snakemake_folder(self):
        shutil.rmtree(self.project.path(".snakemake"), ignore_errors=True)

    def remove_film(self):
        self.film(self.random.choice(self.clips)).unlink(missing_ok=True)

    def remove_description(self):
        self.film(self.random.choice(self.clips)).with_suffix(".json").unlink(missing_ok=True)

    def move_results(self):
        before, self.results = self.results, f"results{self.random.randrange(1000)}"
        self.project.path(self.results).parent.mkdir(exist_ok=True)
        if self.project.path(before).exists():
            self.project.path(before).rename(self.project.path(self.results))

    def reorder_clips(self):
        self.random.shuffle(self.clips)

    def add_clip(self):
        name = f"n{len(self.history)}"
        self.clips.append({"id": name, "source": self.random.choice("abcd"), "brighter": self.random.choice(BRIGHTER)})

    def remove_clip(self):
        if len(self.clips) > 2:
            self.clips.remove(self.random.choice(self.clips))

    def rename_clip(self):
        self.random.choice(self.clips)["id"] = f"r{len(self.history)}"

    def run_and_fail(self):
        """Change something and let the run fail."""
        self.random.choice([self.change_option, self.change_source])()
        self.configure()
        self.project.path("fail").touch()
        code, stderr = self.run()
        self.project.path("fail").unlink()
        if "it was told to fail" in stderr:
            assert code == 1 and "it was told to fail: remove that file" in stderr[stderr.index("items: ") :], stderr
        else:
            assert code == 0, stderr

    def run_and_interrupt(self):
        self.random.choice([self.change_option, self.change_source])()
        self.configure()
        process = self.project.start("--cores", 2)
        time.sleep(self.random.uniform(1, 8))
        process.send_signal(signal.SIGINT)
        process.communicate()

    def step(self):
        changes = [
            *(self.change_option, self.change_source, self.rewrite_source, self.change_date, self.remove_store),
            *(self.remove_intermediates, self.remove_snakemake_folder, self.remove_film, self.remove_description),
            *(self.move_results, self.reorder_clips, self.add_clip, self.remove_clip, self.rename_clip),
            *(self.run_and_fail, self.run_and_interrupt),
        ]
        for change in self.random.sample(changes, self.random.randint(1, 3)):
            self.history.append(change.__name__)
            change()
        self.configure()

    # a run

    def run(self, *arguments):
        """Run Snakemake and return its exit code and standard error. No existing film may be missing at any moment."""
        existing = [path for path in map(self.film, self.clips) if path.exists()]
        missed, finished = [], threading.Event()

        def watch_films():
            while not finished.is_set():
                missed.extend(path.name for path in existing if not path.exists())
                time.sleep(0.002)

        thread = threading.Thread(target=watch_films)
        thread.start()
        process = self.project.start("--cores", 2, *arguments)
        _, stderr = process.communicate()
        finished.set()
        thread.join()
        assert not missed, (self.history, set(missed))
        return process.returncode, stderr

    def check(self, fresh):
        """Check that the films are those of the config, and that nothing is left to do."""
        code, stderr = self.run()
        assert code == 0, (self.history, stderr)
        assert "Traceback" not in stderr and "bug of Kinemake" not in stderr, (self.history, stderr)
        for clip in self.clips:
            is_current = self.film(clip).read_bytes() == fresh[self.content_of[clip["source"]], clip["brighter"]]
            assert is_current, (self.history, clip)
        before = self.project.files()
        assert "Nothing to be done" in finish(self.project.start("--cores", 2, "-n"))[0], self.history
        assert self.project.files() == before, self.history


@pytest.mark.parametrize("seed", range(SEEDS))
def test_films_are_those_of_the_config_after_any_random_history(tmp_path, checkout, contents, fresh, seed):
    walk = Walk(Project(tmp_path, MODEL, root=checkout), contents, seed)
    walk.configure()
    walk.check(fresh)
    for _ in range(STEPS):
        walk.step()
        walk.check(fresh)
