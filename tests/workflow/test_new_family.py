"""A new family is one folder and one recipe; no other file of the code changes."""

import pytest

from examples import toy_family
from tests import zoo
from tests.workflow.conftest import Project


@pytest.fixture
def checkout(tmp_path):
    """A copy of this checkout with two more files."""
    return toy_family.checkout(tmp_path / "checkout")


def test_a_new_family_and_its_recipe_are_two_files(checkout, tmp_path):
    project = Project(tmp_path / "project", {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    toy_family.weights(project.path("grey"))
    zoo.plain(project.folder, "a.mp4", frames=4, size=(32, 32))
    clips = [{"id": "one", "video": "a.mp4"}, {"id": "two", "video": "a.mp4", "brighter": 60}]
    project.configure(demo={"recipe": "toy", "clips": clips, "model": "grey"})
    project.run("--cores", 1)
    for clip, tone in (("one", 110), ("two", 160)):
        rgb = zoo.rgb_by_ffmpeg(project.path(f"results/demo/{clip}.mp4"), (32, 32))
        assert len(rgb) == 3
        assert rgb.mean() == pytest.approx(tone, abs=2)  # 8 bits of luma
    help_text = project.start("--help", program="generate").communicate()[0]
    assert "--brighter" in help_text
