"""The films of a run are those of its config after any history: random changes, compared with films made from nothing.

Each step changes the config, the sources or the folders, and may disturb a run: a stage fails, a file changes while it is
read, the process is killed. Then the films, their descriptions, the exit code and the last table have to be true.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import textwrap
import threading
import time

import pytest

from examples import toy_family
from stages.runtime.stages import STAGES
from stages.runtime.unchanged import file_states
from tests import zoo
from tests.workflow.conftest import Project, finish, item_counts

SCENES = ("", "negate", "hflip")  # of the possible contents of a source
BRIGHTER = (10, 20, 30)
TONES = (100, 110)  # of the possible weights
SEEDS, STEPS = (int(number) for number in os.environ.get("KINEMAKE_WALKS", "2x5").split("x"))
FIRST_SEED = int(os.environ.get("KINEMAKE_WALK_FROM", "0"))
DATES = (0, 1_000_000_000, 2_000_000_000, 4_000_000_000)  # the last two lie in the future

# In the copy of the checkout, stages run the file hook.py of the working folder at their beginning and at their end.
HOOK = '''
import os

def hook(moment, item):
    """Run hook.py, which may disturb the run, and in which `once` and `note` tell its runs apart."""
    if os.path.exists("hook.py"):
        exec(open("hook.py").read(), {"moment": moment, "item": item, "once": once, "note": note})

def once():
    """Whether this is the first call of the run, in whatever process."""
    try:
        os.close(os.open("hook.once", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def note(text):
    with open("hook.notes", "a") as file:
        file.write(text + "\\n")
'''
WITH_HOOK = """
    def {method}(self, {argument}):
        from stages.runtime.hook import hook

        item = getattr(getattr({argument}, "item", None), "id", "")
        hook({moment} + " begin", item)
        self.plain_{method}({argument})
        hook({moment} + " end", item)

    def plain_{method}(self, {argument}"""


# There, the tone of a clip depends on the frame that it continues, too.
EMBEDS, EMBEDS_OF_FRAME = (
    "torch.zeros(1, 1, 1)",
    'torch.full((1, 1, 1), float(int(next(iter(work.artifact("image").members.values()))["sha256"][0], 16)))',
)
TONE = "float(self.tone + work.options.brighter)"
TONE_OF_FRAME = f'{TONE} + work.artifact("encoded").tensors()["prompt_embeds"].item()'


def add_hook(path, method, argument, moment):
    """Call the hook before and after a method of the worker in this file."""
    start = f"\n    def {method}(self, {argument}"
    text = path.read_text()
    assert text.count(start) == 1
    path.write_text(text.replace(start, WITH_HOOK.format(method=method, argument=argument, moment=moment)))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout with the toy family and with hooks in its stages."""
    root = toy_family.checkout(tmp_path_factory.mktemp("walk") / "checkout")
    (root / "stages/runtime/hook.py").write_text(HOOK)
    toy = root / "stages/families/toy/options.py"
    text = toy.read_text()
    assert EMBEDS in text and TONE in text
    toy.write_text(text.replace(EMBEDS, EMBEDS_OF_FRAME).replace(TONE, TONE_OF_FRAME))
    add_hook(toy, "run", "work", "type(self).__name__.lower()")
    add_hook(toy, "load", "options", 'type(self).__name__.lower() + " load"')
    add_hook(root / "stages/media/extract.py", "run", "work", '"extract_frames"')
    add_hook(root / "stages/media/concat.py", "run", "work", '"concat"')
    return root


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Videos of different contents."""
    folder = tmp_path_factory.mktemp("contents")
    return [zoo.plain(folder, f"{number}.mp4", frames=4, size=(32, 32), scene=scene) for number, scene in enumerate(SCENES)]


def make_config(project, rows, results, **run):
    options = {"source_first": True, **run.pop("options", {})}
    run = {"recipe": "v2v", "clips": rows, "model": "grey", "options": options, "private": True, **run}  # no prompt in films
    project.configure(results=results, store=f"{os.path.dirname(results)}/store".lstrip("/"), film=run)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, checkout, contents):
    """The film of each content in each tone, made from nothing."""
    tones = sorted({tone + brighter - TONES[0] for tone in TONES for brighter in BRIGHTER})
    project = Project(tmp_path_factory.mktemp("fresh"), {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    toy_family.weights(project.path("grey"))
    rows = [
        {"id": f"{number}-{tone}", "video": str(path), "prompt": "p", "brighter": tone}
        for number, path in enumerate(contents)
        for tone in tones
    ]
    make_config(project, rows, "results", fuse=True)
    project.run("--cores", 2)
    films = {
        (number, TONES[0] + tone): project.path(f"results/film/{number}-{tone}.mp4").read_bytes()
        for number in range(len(contents))
        for tone in tones
    }
    assert len(set(films.values())) == len(films)
    return films


class Walk:
    """A project, the random changes to it, and the films that it must have."""

    def __init__(self, folder, checkout, contents, fresh, seed):
        self.contents, self.fresh, self.random = contents, fresh, random.Random(seed)
        models = {"grey": {"family": "toy", "path": str(folder / "grey")}}
        self.folder, self.projects = folder, [Project(folder / name, models, checkout) for name in ("here", "there")]
        self.project = self.projects[0]  # in whose folder Snakemake works
        self.results, self.history, self.fuse, self.prompt = "results", [], seed % 2 == 0, "p"
        self.clips = [{"id": name, "source": name, "brighter": 10} for name in ("a", "b", "c")]
        self.content_of = {}
        for number, name in enumerate("abcd"):
            self.replace(name, number % len(contents))
        toy_family.weights(folder / "grey")
        self.tone = TONES[0]
        self.disturbances = [
            *(self.fail_a_job, self.swap_a_source_for_a_moment, self.interrupt, self.replace_a_source_between_stages),
            *(self.fail_some_items, self.swap_the_weights_for_a_moment, self.break_a_source, self.remove_a_source),
            self.remove_the_store_meanwhile,
        ]
        self.turn = 5 * seed

    # the state

    def source(self, name):
        return self.folder / f"{name}.mp4"

    def replace(self, name, content):
        """Give a source another content."""
        shutil.copy(self.contents[content], self.source(name))
        self.content_of[name] = content

    def configure(self, **options):
        """Write the config to the working folder."""
        rows = [{**clip, "video": f"../{clip['source']}.mp4", "prompt": self.prompt} for clip in self.clips]
        rows = [{name: value for name, value in row.items() if name != "source"} for row in rows]
        make_config(self.project, rows, f"../{self.results}", fuse=self.fuse, options=options)

    def film(self, clip):
        return self.folder / self.results / "film" / f"{clip['id']}.mp4"

    def films(self):
        """The content of each film, or None, by id."""
        return {clip["id"]: self.film(clip).read_bytes() if self.film(clip).exists() else None for clip in self.clips}

    def wanted(self, clip):
        return self.fresh[self.content_of[clip["source"]], self.tone + clip["brighter"]]

    def pick_source(self):
        """A source that a clip has."""
        return self.random.choice(self.clips)["source"]

    # changes between two runs

    def change_option(self):
        self.random.choice(self.clips)["brighter"] = self.random.choice(BRIGHTER)

    def change_prompt(self):
        """All stages work again, and the films are the same."""
        self.prompt = f"p{len(self.history)}"

    def change_source(self):
        self.replace(self.random.choice("abcd"), self.random.randrange(len(self.contents)))

    def exchange_sources(self):
        one, other = self.random.sample("abcd", 2)
        self.source(one).rename(self.source("x"))
        self.source(other).rename(self.source(one))
        self.source("x").rename(self.source(other))
        self.content_of[one], self.content_of[other] = self.content_of[other], self.content_of[one]

    def rewrite_source(self):
        name = self.random.choice("abcd")
        self.replace(name, self.content_of[name])

    def change_weights(self):
        """Write weights of the same size and the same mtime, or the same weights."""
        path = self.folder / "grey/tone.txt"
        before = path.stat()
        self.tone = self.random.choice(TONES)
        path.write_text(str(self.tone))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def change_dates(self):
        """Date some files: sources, weights, results, entries of the store."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
        for path in (*self.random.sample(paths, min(len(paths), 5)), self.source(self.pick_source())):
            date = self.random.choice(DATES)
            os.utime(path, (date, date))

    def remove_store(self):
        shutil.rmtree(self.folder / "store", ignore_errors=True)

    def remove_intermediates(self):
        steps = self.folder / self.results / "film/steps"
        shutil.rmtree(self.random.choice([steps, steps / self.random.choice(self.clips)["id"]]), ignore_errors=True)

    def remove_members(self):
        """Remove some intermediate files."""
        paths = [path for path in (self.folder / self.results).rglob("steps/*/**/*") if path.is_file()]
        for path in self.random.sample(paths, min(len(paths), 4)):
            path.unlink()

    def remove_snakemake_folder(self):
        shutil.rmtree(self.project.path(".snakemake"), ignore_errors=True)

    def remove_film(self):
        self.film(self.random.choice(self.clips)).unlink(missing_ok=True)

    def remove_description(self):
        self.film(self.random.choice(self.clips)).with_suffix(".json").unlink(missing_ok=True)

    def damage_film(self):
        film = self.film(self.random.choice(self.clips))
        if film.exists():
            film.write_bytes(film.read_bytes()[:-1] + b"?")

    def move_results(self):
        before, self.results = self.results, f"results{self.random.randrange(1000)}"
        if (self.folder / before).exists() and not (self.folder / self.results).exists():
            (self.folder / before).rename(self.folder / self.results)

    def change_working_folder(self):
        self.project = self.random.choice(self.projects)

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

    # runs that are disturbed

    def fail_a_job(self):
        """Each generate ends with exit code 1."""
        self.hook("""
            from stages.runtime.errors import JobError
            if moment == "generate begin":
                note(item)
                raise JobError("it was told to fail", "remove the hook")
        """)
        before = self.films()
        code, stderr, rows = self.run("--retries", 0)
        assert code == (1 if self.notes() else 0), stderr
        assert {(stage, reason) for _, stage, reason in rows} <= {("generate", "it was told to fail: remove the hook")}, (
            stderr
        )
        self.check_films(before, lambda clip: True)

    def fail_some_items(self):
        chosen = [clip["id"] for clip in self.clips if self.random.random() < 0.5]
        stage = self.random.choice(["encode", "generate", "decode"])
        self.hook(f"""
            from stages.runtime.errors import ItemError
            if moment == "{stage} begin" and item in {chosen}:
                note(item)
                raise ItemError("it was told to fail", "remove the hook")
        """)
        before = self.films()
        code, stderr, rows = self.run()
        failed = {clip["id"] for clip in self.clips if clip["id"] in self.notes()}
        assert {row[0] for row in rows} == {self.shown(identity) for identity in failed}, stderr
        assert {row[1:] for row in rows} <= {(stage, "it was told to fail: remove the hook")}, stderr
        self.check_films(before, lambda clip: clip["id"] in failed)

    def break_a_source(self):
        name = self.pick_source()
        self.source(name).write_bytes(b"no video")
        before = self.films()
        code, stderr, rows = self.run()
        failed = [clip["id"] for clip in self.clips if clip["source"] == name]
        assert sorted(row[0] for row in rows) == sorted(map(self.shown, failed)), stderr
        assert all("is not a readable video" in row[2] for row in rows), stderr
        self.check_films(before, lambda clip: clip["id"] in failed)
        self.replace(name, self.content_of[name])

    def remove_a_source(self):
        """Finished films stay; one whose options change cannot be made."""
        self.check()
        clip = self.random.choice(self.clips)
        self.source(clip["source"]).unlink()
        before = self.films()
        code, stderr, rows = self.run()
        assert "Nothing to be done" in stderr and f"{clip['source']}.mp4 is not there; " in stderr and not rows, stderr
        clip["brighter"] = self.random.choice([one for one in BRIGHTER if one != clip["brighter"]])
        code, stderr, rows = self.run()
        assert [row[0] for row in rows] == [self.shown(clip["id"])] and "does not exist" in rows[0][2], stderr
        assert self.films() == before, stderr
        self.replace(clip["source"], self.content_of[clip["source"]])

    def swap_a_source_for_a_moment(self):
        """While a stage reads a source, another content is in its place; its state is as before in the end."""
        name, stage = self.pick_source(), self.random.choice(["extract_frames", "concat"])
        other = self.contents[self.content_of[name] - 1]
        self.hook(f"""
            import os, shutil
            path = "../{name}.mp4"
            if moment == "{stage} begin" and once():
                os.rename(path, "../kept.mp4")
                shutil.copy("{other}", path)
                note(item)
            if moment == "{stage} end" and os.path.exists("../kept.mp4"):
                os.rename("../kept.mp4", path)
        """)
        code, stderr, rows = self.run("--cores", 1)
        assert code == 0 and not rows, stderr

    def replace_a_source_between_stages(self):
        """The film of a clip that was encoded before must not have the new source in front."""
        name = self.pick_source()
        content = (self.content_of[name] + 1) % len(self.contents)
        self.hook(f"""
            import os, shutil
            if moment == "generate begin" and once():
                shutil.copy("{self.contents[content]}", "../new.mp4")
                os.rename("../new.mp4", "../{name}.mp4")
                note(item)
        """)
        before = self.films()
        code, stderr, rows = self.run()
        if not self.notes():
            return
        possible = {self.shown(clip["id"]) for clip in self.clips if clip["source"] == name}
        assert {row[0] for row in rows} <= possible, stderr
        assert all("was replaced after an earlier item had read it" in row[2] for row in rows), stderr
        old = {clip["id"]: self.wanted(clip) for clip in self.clips}
        self.content_of[name] = content
        for clip in self.clips:
            film = self.films()[clip["id"]]
            if self.shown(clip["id"]) in {row[0] for row in rows}:
                assert film == before[clip["id"]], (clip, stderr)
            else:  # of a source that was replaced before or after all of its stages
                assert film in (old[clip["id"]], self.wanted(clip)), (clip, stderr)

    def swap_the_weights_for_a_moment(self):
        self.hook("""
            import os
            path = os.path.abspath("../grey/tone.txt")
            if moment == "generate load begin" and once():
                os.rename(path, path + ".kept")
                open(path, "w").write("50")
            if moment == "generate load end" and os.path.exists(path + ".kept"):
                os.rename(path + ".kept", path)
        """)
        code, stderr, rows = self.run("--cores", 1)
        assert code == 0 and not rows, stderr

    def remove_the_store_meanwhile(self):
        self.hook(f"""
            import shutil
            if moment == "{self.random.choice(["encode", "generate", "concat"])} begin" and once():
                shutil.rmtree("../store", ignore_errors=True)
        """)
        code, stderr, rows = self.run("--cores", 1)
        assert code == 0 and not rows, stderr

    def interrupt(self):
        """End a run by a signal at a random time. After SIGKILL, its jobs go on beside those of the next run."""
        number = self.random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        self.history.append(number.name)
        self.configure(seconds=0.5)
        process = self.project.start("--cores", 2)
        time.sleep(self.random.uniform(1, 8))
        process.send_signal(number)
        process.wait()
        if number == signal.SIGKILL:
            self.change_option()
            finish(self.project.start("--cores", 1, "--unlock"))

    # the walk

    def step(self):
        """Some changes, and perhaps a disturbed run. Returns whether they leave all films as they have to be."""
        changes = [
            *(self.change_option, self.change_source, self.exchange_sources, self.rewrite_source, self.change_weights),
            *(self.change_dates, self.remove_store, self.remove_intermediates, self.remove_members),
            *(self.remove_snakemake_folder, self.remove_film, self.remove_description, self.damage_film),
            *(self.move_results, self.change_working_folder, self.reorder_clips, self.add_clip, self.remove_clip),
            self.rename_clip,
        ]
        chosen = self.random.sample(changes, self.random.randint(1, 4))
        if self.random.random() < 0.75:
            self.turn += 1
            disturb = self.disturbances[self.turn % len(self.disturbances)]
            chosen += [
                self.random.choice([self.change_option, self.change_source, self.change_weights]),
                self.change_prompt,
                disturb,
            ]
        for change in chosen:
            self.history.append(change.__name__)
            change()
        self.hook("")
        without_effect = {
            *("change_dates", "remove_store", "remove_intermediates", "remove_members", "remove_snakemake_folder"),
            *("move_results", "change_working_folder", "reorder_clips", "remove_clip", "rewrite_source"),
        }
        return without_effect.issuperset(change.__name__ for change in chosen)

    def hook(self, text):
        """Disturb the next run by this text, and forget the notes of the one before."""
        for name in ("hook.py", "hook.once", "hook.notes"):
            self.project.path(name).unlink(missing_ok=True)
        if text:
            self.project.path("hook.py").write_text(textwrap.dedent(text))

    def notes(self):
        """What the hook has noted: the items that it disturbed."""
        path = self.project.path("hook.notes")
        return path.read_text().split() if path.exists() else []

    def shown(self, identity):
        return f"../{self.results}/film/{identity}.mp4"

    def run(self, *arguments):
        """Run Snakemake and return its exit code, its standard error and the rows of the last table.

        No existing film may be missing at any moment. The exit code is 0 if and only if the table names no failure.
        """
        self.configure()
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
        print(self.history, stderr)  # which pytest shows of a test that fails
        assert not missed, (self.history, set(missed))
        assert "Traceback" not in stderr and "bug of Kinemake" not in stderr, (self.history, stderr)
        rows = failures(stderr)
        assert (process.returncode == 0) == (not rows), (self.history, stderr)
        return process.returncode, stderr, rows

    def check_films(self, before, may_stay):
        """Check that each film is that of the config, or the earlier one, whole, if it `may_stay`."""
        for clip in self.clips:
            film = self.films()[clip["id"]]
            assert film == self.wanted(clip) or (may_stay(clip) and film == before[clip["id"]]), (self.history, clip)

    def check(self, is_finished=False):
        """Check that the films are those of the config, and that nothing is left to do; before the run if `is_finished`."""
        code, stderr, rows = self.run()
        assert code == 0, (self.history, stderr)
        if is_finished:
            assert "Nothing to be done" in stderr or item_counts(stderr) == (0, 0, 0), (self.history, stderr)
        self.check_films({}, lambda clip: False)
        for clip in self.clips:
            records = {
                one["stage"]: one for one in json.loads(self.film(clip).with_suffix(".json").read_text())["provenance"]
            }
            source = hashlib.sha256(self.source(clip["source"]).read_bytes()).hexdigest()
            assert records["extract_frames"]["inputs"] == {"video": [source]}, (self.history, clip)
            assert records["generate"]["options"]["brighter"] == clip["brighter"], (self.history, clip)
            assert records["caption_vlm"]["options"]["prompt"] == self.prompt, (self.history, clip)
        listed = (self.folder / self.results / "film/clips.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in listed] == [clip["id"] for clip in self.clips], self.history
        before = self.files()
        _, stderr, _ = self.run()
        assert "Nothing to be done" in stderr, (self.history, stderr)
        assert self.files() == before, self.history

    def files(self):
        """The state of every file except Snakemake's own."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
        return file_states(path for path in paths if path.name not in ("config.yaml", ".lock"))


def failures(stderr):
    """The rows of the table of failures at the end of a run: film or job, stage, reason."""
    lines = stderr[stderr.rindex("\nitems: ") :].splitlines()[2:] if "\nitems: " in stderr else []
    if not lines or not lines[0].startswith("film or job"):
        return []
    rows = [re.split(r"\s{2,}", line, maxsplit=2) for line in lines[1:]]
    end = next((number for number, row in enumerate(rows) if len(row) < 3 or row[0] == "item or file"), len(rows))
    assert all(row[1] in (*STAGES, "plan", "fetch", "snakemake") for row in rows[:end]), rows
    return [tuple(row) for row in rows[:end]]


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_films_are_those_of_the_config_after_any_random_history(tmp_path, checkout, contents, fresh, seed):
    walk = Walk(tmp_path, checkout, contents, fresh, seed)
    walk.check()
    for _ in range(STEPS):
        walk.check(walk.step())
