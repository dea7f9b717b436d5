"""A device belongs to one process at a time, and is free the moment that process is dead."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stages.runtime import lease
from stages.runtime.device import take_device
from stages.runtime.errors import JobError

ROOT = Path(__file__).parents[2]

# Takes a device, checks that its last user is gone, works a moment. A killed user leaves its pid behind, but is dead.
USER = """
import os, sys, time
from pathlib import Path
from stages.runtime.lease import lease

def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

folder = Path(sys.argv[1])
for device in lease(int(sys.argv[2])):
    owner = folder / device
    last = owner.read_text() if owner.exists() else ""
    if last and alive(last):
        (folder / f"overlap-{os.getpid()}").touch()
    owner.write_text(str(os.getpid()))
time.sleep(0.02)
for device in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
    (folder / device).write_text("")
(folder / f"done-{os.getpid()}").touch()
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Four pretended devices with a lock folder of their own."""
    monkeypatch.setenv("KINEMAKE_GPUS", "4")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(tmp_path / "locks"))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for descriptor in lease._held:
        os.close(descriptor)
    lease._held.clear()


def test_200_leases_under_kill_9_never_overlap(pool):
    used = pool / "used"
    used.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    chance = random.Random(0)
    running, started, killed = [], 0, 0
    while started < 200 or running:
        while started < 200 and len(running) < 12:
            count = "2" if started % 10 == 0 else "1"
            running.append(subprocess.Popen([sys.executable, "-c", USER, str(used), count], env=environment))
            started += 1
        if chance.random() < 0.05 and killed < 25:
            chance.choice(running).send_signal(signal.SIGKILL)
            killed += 1
        time.sleep(0.005)
        running = [process for process in running if process.poll() is None]
    names = [path.name for path in used.iterdir()]
    assert not [name for name in names if name.startswith("overlap")]
    assert 200 - killed <= sum(name.startswith("done") for name in names) <= 200
    assert {"0", "1", "2", "3"} <= set(names)


def test_the_lease_is_what_the_process_sees(pool):
    taken = lease.lease(2)
    assert len(set(taken)) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(taken)
    os.environ.pop("CUDA_VISIBLE_DEVICES")


def test_a_busy_pool_is_waited_for_and_then_refused(pool, monkeypatch):
    lease.lease(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(JobError, match="no GPU came free within 0.1 s"):
        lease.lease(1, timeout=0.1)


def test_more_than_there_are_is_refused_at_once(pool):
    with pytest.raises(JobError, match="5 GPUs are wanted and 4 are visible"):
        lease.lease(5)


def test_under_slurm_the_assigned_device_is_taken_as_it_is(pool, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3")
    assert lease.lease(1) == ["GPU-3"]
    assert not (pool / "locks").exists()


@pytest.fixture
def driver(pool, monkeypatch):
    """Lets nvidia-smi list devices, as `nvidia-smi -L` does."""

    def lists(*lines):
        program = pool / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(pool), prepend=os.pathsep)
        monkeypatch.delenv("KINEMAKE_GPUS")

    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    yield lists
    assert os.environ.pop("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"  # CUDA has to count as the driver does


def test_a_card_has_one_name_whatever_it_is_called(driver, monkeypatch):
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    assert lease.visible_devices() == ["GPU-aaaa", "GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert lease.visible_devices() == ["GPU-bbbb"]


def test_a_card_in_slices_is_its_slices(driver, monkeypatch):
    slices = [f"  MIG 3g.71gb     Device  {n}: (UUID: MIG-{n})" for n in range(2)]
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", *slices, "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    assert lease.visible_devices() == ["MIG-0", "MIG-1", "GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert lease.visible_devices() == ["MIG-0", "MIG-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert lease.visible_devices() == ["MIG-1"]


def test_no_device_means_the_cpu(pool, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lease.lease(1) == []


def holds_two(user, channel):
    """A process of a user that leases two devices, tells them, and holds them until it is told to end."""
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    channel.send(lease.lease(2))
    channel.recv()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("users", [(0, 65534), (65534, 0)], ids=["root first", "root second"])
def test_two_users_of_a_machine_share_its_devices(pool, monkeypatch, users):
    """Whoever of them made the lock folder and its files."""
    processes = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setenv("KINEMAKE_GPU_LOCKS", f"{folder}/locks")
        taken, channels = [], []
        for user in users:
            ours, theirs = processes.Pipe()
            processes.Process(target=holds_two, args=(user, theirs), daemon=True).start()
            assert ours.poll(30), "nothing was leased"
            taken += ours.recv()
            channels.append(ours)
        assert sorted(taken) == ["0", "1", "2", "3"]
        for channel in channels:
            channel.send("end")


def test_a_job_takes_as_many_devices_as_its_items_want(pool):
    with pytest.raises(JobError, match="5 GPUs are wanted and 4 are visible"):
        take_device("auto", None, gpus=5)
