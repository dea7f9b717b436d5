"""A device belongs to one process at a time, and is free as soon as that process is dead."""

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
from unittest.mock import Mock

import pytest

from stages.runtime import lease, locks
from stages.runtime.device import gpu_of_rank, take_device
from stages.runtime.errors import JobError

ROOT = Path(__file__).parents[2]

# Leases a device, checks that its last user is gone, works a moment. A killed user leaves its pid behind, but is dead.
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
    """Four simulated devices with a lock folder of their own."""
    monkeypatch.setenv("KINEMAKE_GPUS", "4")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(tmp_path / "locks"))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    locks.release()


def test_200_leases_of_killed_processes_never_overlap(pool):
    device_folder = pool / "used"
    device_folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng = random.Random(0)
    running, started, killed = [], 0, 0
    while started < 200 or running:
        while started < 200 and len(running) < 12:
            count = "2" if started % 10 == 0 else "1"
            running.append(subprocess.Popen([sys.executable, "-c", USER, str(device_folder), count], env=environment))
            started += 1
        if rng.random() < 0.05 and killed < 25:
            rng.choice(running).send_signal(signal.SIGKILL)
            killed += 1
        time.sleep(0.005)
        running = [process for process in running if process.poll() is None]
    names = [path.name for path in device_folder.iterdir()]
    assert not [name for name in names if name.startswith("overlap")]
    assert 200 - killed <= sum(name.startswith("done") for name in names) <= 200
    assert {"0", "1", "2", "3"} <= set(names)


def test_lease_sets_the_visible_devices(pool):
    leased = lease.lease(2)
    assert len(set(leased)) == 2 and lease.share_of_devices() == 2 / 4
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(leased)
    os.environ.pop("CUDA_VISIBLE_DEVICES")


def test_lease_waits_for_a_busy_device_and_then_fails(pool, monkeypatch):
    lease.lease(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(JobError, match="no GPU came free within 0.1 s"):
        lease.lease(1, timeout=0.1)


def test_lease_refuses_more_devices_than_there_are_at_once(pool):
    with pytest.raises(JobError, match="5 GPUs are wanted and 4 are visible"):
        lease.lease(5)


def test_lease_takes_the_device_that_slurm_assigned(pool, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3")
    assert lease.lease(1) == ["GPU-3"] and lease.share_of_devices() == 1
    assert not (pool / "locks").exists()


@pytest.fixture
def driver(pool, monkeypatch):
    """A function that installs an nvidia-smi which prints the given lines, like `nvidia-smi -L`."""

    def list_devices(*lines):
        program = pool / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(pool), prepend=os.pathsep)
        monkeypatch.delenv("KINEMAKE_GPUS")

    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    yield list_devices
    assert os.environ.pop("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"  # CUDA has to count as the driver does


def test_a_device_by_number_and_by_uuid_is_the_same_device(driver, monkeypatch):
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    assert lease.visible_devices() == ["GPU-aaaa", "GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert lease.visible_devices() == ["GPU-bbbb"]


def test_a_device_may_be_named_once_by_a_prefix_of_its_uuid(driver, monkeypatch):
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert lease.visible_devices() == ["GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-b")
    with pytest.raises(JobError, match="names the device GPU-bbbb twice"):
        lease.visible_devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(JobError, match="CUDA_VISIBLE_DEVICES names GPU 2: the driver has 0, 1"):
        lease.visible_devices()


def test_a_gpu_with_mig_slices_is_listed_as_its_slices(driver, monkeypatch):
    slices = [f"  MIG 3g.71gb     Device  {n}: (UUID: MIG-{n})" for n in range(2)]
    driver("GPU 0: NVIDIA H200 (UUID: GPU-aaaa)", *slices, "GPU 1: NVIDIA H200 (UUID: GPU-bbbb)")
    assert lease.visible_devices() == ["MIG-0", "MIG-1", "GPU-bbbb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert lease.visible_devices() == ["MIG-0", "MIG-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert lease.visible_devices() == ["MIG-1"]


def test_lease_without_visible_devices_is_empty(pool, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lease.lease(1) == []


def hold_two_devices(user, channel):
    """Lease two devices as a user, send them, and hold them until a message arrives."""
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    channel.send(lease.lease(2))
    channel.recv()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("users", [(0, 65534), (65534, 0)], ids=["root first", "root second"])
def test_two_users_lease_different_devices_of_a_machine(pool, monkeypatch, users):
    """It does not matter which of them created the lock folder and its files."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setenv("KINEMAKE_GPU_LOCKS", f"{folder}/locks")
        leased, channels = [], []
        for user in users:
            ours, theirs = context.Pipe()
            context.Process(target=hold_two_devices, args=(user, theirs), daemon=True).start()
            assert ours.poll(30), "nothing was leased"
            leased += ours.recv()
            channels.append(ours)
        assert sorted(leased) == ["0", "1", "2", "3"]
        for channel in channels:
            channel.send("end")


def test_a_waiting_lease_logs_the_devices_and_their_holders(pool, monkeypatch, capsys):
    monkeypatch.setattr(lease, "FIRST_MESSAGE", 0.1)
    lease.lease(3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(JobError):
        lease.lease(2, timeout=0.5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if '"waiting"' in line]  # once, not at every look
    devices = json.loads(line)["devices"]
    assert sorted(devices) == ["0", "1", "2", "3"]
    assert sorted(who.startswith(f"process {os.getpid()} of ") for who in devices.values()) == [False, True, True, True]
    assert "nobody" in devices.values()


def test_a_forked_child_does_not_keep_the_lease_of_its_parent(pool, monkeypatch):
    """The workers of a data loader are such children; they may outlive a killed training."""
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


def test_lease_ignores_locks_that_belong_to_no_device(pool):
    """For example the lock of an earlier version on the whole pool, held by another process."""
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
def test_a_planted_lock_is_refused_and_not_written(pool, monkeypatch, plant):
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


@pytest.mark.parametrize("kind", ["file", "dangling link", "file above"])
def test_an_unusable_lock_folder_is_reported(pool, monkeypatch, kind):
    folder = pool / "taken"
    folder.symlink_to(pool / "nowhere") if kind == "dangling link" else folder.write_text("")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(folder / "below" if kind == "file above" else folder))
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
def test_an_invalid_value_of_a_device_variable_is_one_sentence(pool, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    with pytest.raises(JobError, match=f"{variable} is .*{reason}"):
        lease.lease(1, timeout=1)


def test_take_device_leases_as_many_devices_as_asked(pool):
    with pytest.raises(JobError, match="5 GPUs are wanted and 4 are visible"):
        take_device("auto", None, gpus=5)


def test_take_device_gives_a_process_the_same_gpus_every_time(pool, monkeypatch):
    monkeypatch.setattr("stages.runtime.device._leased", [])
    monkeypatch.setattr("stages.runtime.lease._try_take", Mock(wraps=lease._try_take))
    take_device("auto", None, gpus=2)
    held = os.environ["CUDA_VISIBLE_DEVICES"]
    take_device("auto", None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == held and lease._try_take.call_count == 1
    with pytest.raises(JobError, match="3 GPUs are wanted and this process has leased 2"):
        take_device("auto", None, gpus=3)


def test_a_job_sees_the_gpus_of_its_model_and_leaves_the_others_to_its_ranks(pool, monkeypatch):
    monkeypatch.setattr("stages.runtime.device._leased", [])
    take_device("auto", None, gpus=3, seen=2)
    seen = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    assert len(seen) == 2 and gpu_of_rank(2, "cuda") not in seen
    assert gpu_of_rank(0, "cuda") == seen[0] and gpu_of_rank(1, "cpu") == ""
