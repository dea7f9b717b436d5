"""The Slurm cluster and the images of these tests, which they set up themselves."""

import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster import images as stage_images
from tests.cluster import slurm as toy
from tests.workflow.conftest import ROOT, models, preloaded_projects  # noqa: F401


@pytest.fixture(scope="session")
def slurm():
    """A running Slurm. Skips the tests that use it if none can be started."""
    if reason := toy.obstacle():
        pytest.skip(reason)
    # munge refuses folders below one that others may write to, such as /tmp
    with tempfile.TemporaryDirectory(prefix="kinemake-slurm-", dir="/var/lib", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with toy.running(Path(folder) / "toy"):
            yield toy


@pytest.fixture(scope="session")
def images():
    """Builds the images. Skips the tests that use them if none can be built."""
    if reason := stage_images.obstacle():
        pytest.skip(reason)
    stage_images.build()


@pytest.fixture(scope="session")
def profile(tmp_path_factory, slurm):
    """The shipped profile as a site would edit it, with a higher polling rate than suits a real Slurm."""
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    resources = settings["default-resources"]
    assert {"slurm_partition", "slurm_account", "gpu_model"} == resources.keys()
    resources |= {"slurm_partition": slurm.PARTITION, "gpu_model": slurm.GPU_TYPE}
    del resources["slurm_account"]
    settings |= {"slurm-no-account": True, "slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 2}
    folder = tmp_path_factory.mktemp("profile")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder
