"""A device belongs to one process at a time, and is free the moment that process is dead."""

import fcntl
import json
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

from stages.runtime import lease, locks
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
    locks.release()


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


def test_a_card_may_be_named_by_the_beginning_of_its_uuid_and_only_once(driver, monkeypatch):
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert lease.visible_devices() == ["GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-b")
    with pytest.raises(JobError, match="names the device GPU-bbbb twice"):
        lease.visible_devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(JobError, match="CUDA_VISIBLE_DEVICES names GPU 2: the driver has 0, 1"):
        lease.visible_devices()


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


def test_waiting_is_told_with_what_is_waited_for_and_who_has_it(pool, monkeypatch, capsys):
    monkeypatch.setattr(lease, "FIRST_WORD", 0.1)
    lease.lease(3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(JobError):
        lease.lease(2, timeout=0.5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if '"waiting"' in line]  # once, not at every look
    devices = json.loads(line)["devices"]
    assert sorted(devices) == ["0", "1", "2", "3"]
    assert sorted(said.startswith(f"process {os.getpid()} of ") for said in devices.values()) == [False, True, True, True]
    assert "nobody" in devices.values()


def test_a_forked_child_does_not_keep_the_device_of_its_parent(pool, monkeypatch):
    """As the workers of a data loader do, which may outlive a killed training."""
    ours, theirs = os.pipe()
    parent = os.fork()
    if not parent:
        lease.lease(4)
        if not os.fork():
            os.write(theirs, b"%d" % os.getpid())
            time.sleep(60)
        time.sleep(60)
        os._exit(0)
    child = int(os.read(ours, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        assert len(lease.lease(4, timeout=2)) == 4
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(ours)
        os.close(theirs)


def test_nobody_is_kept_out_by_a_lock_that_is_no_device(pool):
    """An earlier version's lock on the whole pool, held by some other process."""
    (pool / "locks").mkdir()
    with open(pool / "locks" / "pool.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(lease.lease(1, timeout=1)) == 1


@pytest.mark.parametrize(
    "plant",
    [
        lambda lock, victim: lock.symlink_to(victim),
        lambda lock, victim: lock.hardlink_to(victim),
        lambda lock, victim: lock.symlink_to(victim.with_name("none yet")),
        lambda lock, victim: lock.mkdir(),
        lambda lock, victim: os.mkfifo(lock),
    ],
    ids=["link", "hard link", "dangling link", "folder", "pipe"],
)
def test_what_is_planted_in_the_place_of_a_lock_is_refused_and_nothing_is_written(pool, monkeypatch, plant):
    monkeypatch.setenv("KINEMAKE_GPUS", "1")
    victim = pool / "victim"
    victim.write_text("precious")
    (pool / "locks").mkdir()
    plant(pool / "locks" / "gpu-0.lock", victim)
    with pytest.raises(JobError, match=r"the lock .*gpu-0.lock .*: remove it, or choose another folder"):
        lease.lease(1, timeout=5)
    assert victim.read_text() == "precious"
    assert not (pool / "none yet").exists()


def test_a_lock_is_never_written(pool):
    (pool / "locks").mkdir()
    (pool / "locks" / "gpu-0.lock").write_text("whatever this is")
    lease.lease(4)
    assert (pool / "locks" / "gpu-0.lock").read_text() == "whatever this is"


@pytest.mark.parametrize("place", ["file", "dangling link", "file above"])
def test_a_lock_folder_that_cannot_be_one_is_told(pool, monkeypatch, place):
    folder = pool / "taken"
    folder.symlink_to(pool / "nowhere") if place == "dangling link" else folder.write_text("")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(folder / "below" if place == "file above" else folder))
    with pytest.raises(JobError, match="the folder of GPU locks .* cannot be used .*: set KINEMAKE_GPU_LOCKS"):
        lease.lease(1)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,0", "names the device 0 twice"),
        ("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-aa", "names the device GPU-aa twice"),
        ("CUDA_VISIBLE_DEVICES", "all", "give numbers or UUIDs"),
        ("CUDA_VISIBLE_DEVICES", "0,,1", "give numbers or UUIDs"),
        ("CUDA_VISIBLE_DEVICES", "0;1", "give numbers or UUIDs"),
        ("CUDA_VISIBLE_DEVICES", "../../etc/passwd", "give numbers or UUIDs"),
        ("CUDA_VISIBLE_DEVICES", "GPU-../../x", "give numbers or UUIDs"),
        ("KINEMAKE_GPUS", "a,a", "names the device a twice"),
        ("KINEMAKE_GPUS", "../x", "give a number of devices"),
        ("KINEMAKE_GPUS", "-1", "give a number of devices"),
        ("KINEMAKE_GPUS", "1e9", "give a number of devices"),
        ("KINEMAKE_GPUS", "99999999999", "give a number of devices"),
        ("KINEMAKE_GPUS", "\u00b2", "give a number of devices"),
    ],
)
def test_an_odd_value_of_a_variable_is_one_sentence(pool, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    with pytest.raises(JobError, match=f"{variable} is .*{reason}"):
        lease.lease(1, timeout=1)


def test_a_job_takes_as_many_devices_as_its_items_want(pool):
    with pytest.raises(JobError, match="5 GPUs are wanted and 4 are visible"):
        take_device("auto", None, gpus=5)
