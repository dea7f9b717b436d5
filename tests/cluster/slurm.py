"""A real Slurm of one node with simulated GPUs, from Debian's packages, with all its files in one folder."""

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.commands import wait_for

GPUS, CPUS, GPU_TYPE, PARTITION = 8, 16, "h200", "gpu"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "squeue")
DEFAULT_CONFIG = Path("/etc/slurm/slurm.conf")  # jobs find their Slurm here: its plugin strips SLURM_CONF


def obstacle() -> str:
    """The reason why no Slurm can be started here, or ''."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        return f"{missing[0]} is not installed (apt-get install --no-install-recommends slurm-wlm munge)"
    if not find_spec("snakemake_executor_plugin_slurm"):
        return "Snakemake's plugin for Slurm is not installed (make test-cluster does that)"
    if os.geteuid():
        return "only root can start Slurm's daemons"
    if DEFAULT_CONFIG.exists():
        return f"this machine has a Slurm of its own ({DEFAULT_CONFIG})"
    return ""


@contextmanager
def running(folder: Path):
    """Run a Slurm whose files are all in `folder`, which is new and readable by all."""
    for name in ("etc", "run", "log", "state", "spool", "dev"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    write_config(folder, host)
    environment = {**os.environ, "SLURM_CONF": str(folder / "etc/slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    DEFAULT_CONFIG.parent.mkdir(exist_ok=True)
    DEFAULT_CONFIG.symlink_to(folder / "etc/slurm.conf")
    try:
        start_munge(folder)
        for daemon in (["slurmctld"], ["slurmd", "-N", host]):
            subprocess.run(daemon, env=environment, check=True, start_new_session=True)
        wait_for(lambda: ask("sinfo", "-h", "-o", "%t") == "idle", f"no idle node: see {folder}/log")
        yield folder
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            stop(folder / "run" / f"{name}.pid")
        DEFAULT_CONFIG.unlink()


def ask(*command: str) -> str:
    """Standard output of a Slurm client. The timeout applies if it cannot reach the daemons."""
    process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return process.stdout.strip()


def write_config(folder: Path, host: str) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    controller, node = free_ports(2)
    for number in range(GPUS):  # Slurm accepts character devices only: these are copies of /dev/null
        os.mknod(folder / f"dev/gpu{number}", 0o020666, os.makedev(1, 3))
    (folder / "etc/slurm.conf").write_text(
        f"""ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CryptoType=crypto/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,bf_interval=1,sched_interval=1
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=2
MinJobAge=300
CommunicationParameters=NoAddrCache
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={memory} Gres=gpu:{GPU_TYPE}:{GPUS} State=UNKNOWN
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
    )
    devices = f"{folder}/dev/gpu[0-{GPUS - 1}]"
    (folder / "etc/gres.conf").write_text(f"AutoDetect=off\nNodeName={host} Name=gpu Type={GPU_TYPE} File={devices}\n")
    (folder / "etc/cgroup.conf").write_text("CgroupAutomount=no\n")


def start_munge(folder: Path) -> None:
    key = folder / "etc/munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for name, mode in ((".", 0o755), ("etc", 0o755), ("run", 0o755), ("log", 0o700)):
        (folder / name).chmod(mode)
    files = {"key-file": "etc/munge.key", "socket": "run/munge.sock", "pid-file": "run/munged.pid"}
    files |= {"log-file": "log/munged.log", "seed-file": "run/munge.seed"}
    options = [f"--{name}={folder}/{path}" for name, path in files.items()]
    subprocess.run(["/usr/sbin/munged", "--force", *options], check=True, start_new_session=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for port_socket in sockets:
        port_socket.bind(("127.0.0.1", 0))
    ports = [port_socket.getsockname()[1] for port_socket in sockets]
    for port_socket in sockets:
        port_socket.close()
    return ports


def stop(pid_file: Path) -> None:
    if not pid_file.is_file() or not (text := pid_file.read_text().strip()):
        return
    try:
        os.kill(int(text), 15)
        wait_for(lambda: not Path(f"/proc/{text}").exists(), f"{pid_file.stem} does not stop")
    except ProcessLookupError:
        pass
