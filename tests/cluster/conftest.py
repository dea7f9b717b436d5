"""What a cluster is to these tests: a Slurm that they start themselves."""

import tempfile
from pathlib import Path

import pytest
import yaml

from tests.cluster import images as built
from tests.cluster import slurm as toy
from tests.workflow.conftest import ROOT, models  # noqa: F401


@pytest.fixture(scope="session")
def slurm():
    """A running Slurm; the tests that ask for it are skipped where none can be started."""
    if reason := toy.obstacle():
        pytest.skip(reason)
    # munge trusts no folder below one that others may write to, as those for temporary files are
    with tempfile.TemporaryDirectory(prefix="kinemake-slurm-", dir="/var/lib", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with toy.running(Path(folder) / "toy"):
            yield toy


@pytest.fixture(scope="session")
def images():
    """The images are there; the tests that ask for them are skipped where none can be built."""
    if reason := built.obstacle():
        pytest.skip(reason)
    built.build()


@pytest.fixture(scope="session")
def profile(tmp_path_factory, slurm):
    """The shipped profile as a site would edit it, and asked more often how jobs fare than a real Slurm would like."""
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    resources = settings["default-resources"]
    assert {"slurm_partition", "slurm_account", "gpu_model"} == resources.keys()
    resources |= {"slurm_partition": slurm.PARTITION, "gpu_model": slurm.GPU_TYPE}
    del resources["slurm_account"]
    settings |= {"slurm-no-account": True, "slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 2}
    folder = tmp_path_factory.mktemp("profile")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder
