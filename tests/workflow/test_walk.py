"""Whatever was done to a run before, its films are those of its config: random histories, against films from nothing."""

import os
import random
import shutil
import signal
import threading
import time

import pytest

from benchmarks import toy
from tests import zoo
from tests.workflow.conftest import Project, ended

SIZES = ((32, 32), (48, 48), (64, 64))  # of the contents that a source may have
BRIGHTER = (10, 20, 30)
SEEDS, STEPS = (int(number) for number in os.environ.get("KINEMAKE_WALKS", "3x10").split("x"))
DATES = (0, 1_000_000_000, 2_000_000_000, 4_000_000_000)  # the last two lie ahead
MODEL = {"grey": {"family": "toy", "path": "grey"}}
FAIL = """        if os.path.exists("fail"):
            raise JobError("it was told to fail", "remove that file")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout with the toy family, whose generate fails where a file says so."""
    root = toy.checkout(tmp_path_factory.mktemp("walk") / "checkout")
    options = root / "stages/models/toy/options.py"
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
    toy.weights(project.path("grey"))
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
    """A project, what is done to it at random, and what its films have to be."""

    def __init__(self, project, contents, seed):
        self.project, self.contents, self.random = project, contents, random.Random(seed)
        self.results, self.history = "results", []
        self.clips = [{"id": name, "source": name, "brighter": 10} for name in ("a", "b", "c")]
        self.held = {}
        for number, name in enumerate("abcd"):
            self.replace(name, number % len(contents))
        toy.weights(project.path("grey"))

    def replace(self, name, content):
        """Give a source another content; its date may be the same."""
        shutil.copy(self.contents[content], self.project.path(f"{name}.mp4"))
        self.held[name] = content

    def configure(self):
        rows = [{"id": one["id"], "video": f"{one['source']}.mp4", "brighter": one["brighter"]} for one in self.clips]
        self.project.configure(results=self.results, store="store", film={"recipe": "toy", "clips": rows, "model": "grey"})

    def film(self, clip):
        return self.project.path(f"{self.results}/film/{clip['id']}.mp4")

    # what may happen between two runs

    def other_option(self):
        self.random.choice(self.clips)["brighter"] = self.random.choice(BRIGHTER)

    def other_source(self):
        self.replace(self.random.choice("abcd"), self.random.randrange(len(self.contents)))

    def same_source_again(self):
        name = self.random.choice("abcd")
        self.replace(name, self.held[name])

    def any_date(self):
        paths = [self.project.path(f"{self.random.choice('abcd')}.mp4"), *map(self.film, self.clips)]
        paths += self.project.path(self.results).rglob("*.safetensors")
        if (path := self.random.choice(paths)).exists():
            os.utime(path, (date := self.random.choice(DATES), date))

    def no_store(self):
        shutil.rmtree(self.project.path("store"), ignore_errors=True)

    def no_intermediates(self):
        steps = self.project.path(f"{self.results}/film/steps")
        shutil.rmtree(self.random.choice([steps, steps / self.random.choice(self.clips)["id"]]), ignore_errors=True)

    def no_memory_of_snakemake(self):
        shutil.rmtree(self.project.path(".snakemake"), ignore_errors=True)

    def no_film(self):
        self.film(self.random.choice(self.clips)).unlink(missing_ok=True)

    def no_description(self):
        self.film(self.random.choice(self.clips)).with_suffix(".json").unlink(missing_ok=True)

    def moved(self):
        before, self.results = self.results, f"results{self.random.randrange(1000)}"
        self.project.path(self.results).parent.mkdir(exist_ok=True)
        if self.project.path(before).exists():
            self.project.path(before).rename(self.project.path(self.results))

    def another_order(self):
        self.random.shuffle(self.clips)

    def one_more(self):
        name = f"n{len(self.history)}"
        self.clips.append({"id": name, "source": self.random.choice("abcd"), "brighter": self.random.choice(BRIGHTER)})

    def one_less(self):
        if len(self.clips) > 2:
            self.clips.remove(self.random.choice(self.clips))

    def another_name(self):
        self.random.choice(self.clips)["id"] = f"r{len(self.history)}"

    def failed(self):
        """Something changes, and the run fails."""
        self.random.choice([self.other_option, self.other_source])()
        self.configure()
        self.project.path("fail").touch()
        code, said = self.run()
        self.project.path("fail").unlink()
        if "it was told to fail" in said:
            assert code == 1 and "it was told to fail: remove that file" in said[said.index("items: ") :], said
        else:
            assert code == 0, said

    def interrupted(self):
        self.random.choice([self.other_option, self.other_source])()
        self.configure()
        process = self.project.start("--cores", 2)
        time.sleep(self.random.uniform(1, 8))
        process.send_signal(signal.SIGINT)
        process.communicate()

    def step(self):
        changes = [
            *(self.other_option, self.other_source, self.same_source_again, self.any_date, self.no_store),
            *(self.no_intermediates, self.no_memory_of_snakemake, self.no_film, self.no_description, self.moved),
            *(self.another_order, self.one_more, self.one_less, self.another_name, self.failed, self.interrupted),
        ]
        for change in self.random.sample(changes, self.random.randint(1, 3)):
            self.history.append(change.__name__)
            change()
        self.configure()

    # a run

    def run(self, *arguments):
        """The exit code of a run, and what it says; no film that was there may be gone at any moment."""
        there = [path for path in map(self.film, self.clips) if path.exists()]
        missed, over = [], threading.Event()

        def watch():
            while not over.is_set():
                missed.extend(path.name for path in there if not path.exists())
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process = self.project.start("--cores", 2, *arguments)
        _, said = process.communicate()
        over.set()
        watcher.join()
        assert not missed, (self.history, set(missed))
        return process.returncode, said

    def check(self, fresh):
        """The films are those of the config, and there is nothing left to do."""
        code, said = self.run()
        assert code == 0, (self.history, said)
        assert "Traceback" not in said and "bug of Kinemake" not in said, (self.history, said)
        for clip in self.clips:
            same = self.film(clip).read_bytes() == fresh[self.held[clip["source"]], clip["brighter"]]
            assert same, (self.history, clip)
        before = self.project.files()
        assert "Nothing to be done" in ended(self.project.start("--cores", 2, "-n"))[0], self.history
        assert self.project.files() == before, self.history


@pytest.mark.parametrize("seed", range(SEEDS))
def test_films_are_those_of_the_config_after_any_history(tmp_path, checkout, contents, fresh, seed):
    walk = Walk(Project(tmp_path, MODEL, root=checkout), contents, seed)
    walk.configure()
    walk.check(fresh)
    for _ in range(STEPS):
        walk.step()
        walk.check(fresh)
