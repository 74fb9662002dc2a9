"""A real SLURM cluster on the loopback address: Debian's packages slurmctld, slurmd, slurm-client and munge."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

NEEDED = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch")

MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
"""What this machine lacks for a cluster; tests skip if there is anything."""

NO_MEMORY_LIMIT = (
    "" if os.access("/sys/fs/cgroup/memory/cgroup.procs", os.W_OK) else "no memory cgroup (v1) to write to"
)
"""Why SLURM cannot enforce memory here. For version 2, Debian's slurmd 22.05 needs systemd's D-Bus."""

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmUser={user}
SlurmdUser={user}
SlurmdTimeout=10
{tracking}
SelectType=select/cons_tres
SelectTypeParameters={resource}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MailProg=/bin/true
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=short Nodes=ALL MaxTime=1 PriorityTier=1
PartitionName=cheap Nodes=ALL PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL PriorityTier=9
PartitionName=gpu Nodes=ALL PriorityTier=1
GresTypes=gpu
"""


CGROUPS = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""
TRACKING = {
    False: "ProctrackType=proctrack/pgid\nTaskPlugin=task/none",
    True: "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/cgroup",
}


class Job(NamedTuple):
    """A job in the queue.

    Attributes:
        start: of its latest one, as text.
        cell: key of what it measures.
    """

    number: str
    state: str
    start: str
    node: str
    name: str
    cell: str


@dataclass
class Cluster:
    """Daemons of one controller and of nodes with one core each; commands find it by ``SLURM_CONF``.

    Attributes:
        more: lines of the configuration.
        cgroups: whether memory is booked, and what a job uses beyond it is taken back by the kernel.
    """

    folder: Path
    nodes: tuple[str, ...] = ("n1", "n2")
    more: str = ""
    cgroups: bool = False

    def start(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        host, user = socket.gethostname().partition(".")[0], _user()
        ports = _free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(
            host=host,
            port=ports[0],
            folder=self.folder,
            user=user,
            tracking=TRACKING[self.cgroups],
            resource="CR_Core_Memory" if self.cgroups else "CR_Core",
        )
        text += self.more
        for node, port in zip(self.nodes, ports[1:], strict=True):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            text += "CPUs=1 RealMemory=4000 Gres=gpu:1\n"
        self.configuration.write_text(text)
        if self.cgroups:
            (self.folder / "cgroup.conf").write_text(CGROUPS)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # one that nobody can use
        key, place = self.folder / "munge.key", f"--socket={self.folder}/munge.socket"
        _run("mungekey", "--create", f"--keyfile={key}")
        logs = [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        _run("munged", "--force", place, f"--key-file={key}", *logs)
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def start_controller(self) -> None:
        _run("slurmctld", "-f", str(self.configuration))

    def start_node(self, node: str) -> None:
        _run("slurmd", "-f", str(self.configuration), "-N", node)
        self.wait_for(lambda: "idle" in self.ask("sinfo", "--noheader", f"--nodes={node}", "--Format=StateLong"))

    def ask(self, *command: str) -> str:
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def state(self, job: str) -> str:
        """As SLURM has it, such as RUNNING; without what plagues it at the moment."""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def wait_for_state(self, job: str, state: str, limit: float = 120.0) -> None:
        self.wait_for(lambda: self.state(job) == state, limit)

    def jobs(self) -> list[Job]:
        """Those that wait or run."""
        lines = self.ask("squeue", "--noheader", "--states=running,pending", "--format=%A|%T|%S|%N|%j|%k").splitlines()
        return [Job(*fields[:5], fields[5].partition(".")[0]) for line in lines if len(fields := line.split("|")) == 6]

    def processes(self, job: str) -> list[psutil.Process]:
        """Python's processes of a job: the worker first, then its guard and its child."""
        found, wanted = [], {"SLURM_JOB_ID": job, "SLURM_CONF": str(self.configuration)}
        for process in psutil.process_iter():
            try:
                if "python" in process.name() and wanted.items() <= process.environ().items():
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.pid)

    def kill(self, daemon: str, number: int = signal.SIGKILL) -> None:
        """``slurmctld``, or a node's: the processes of its jobs live on. Returns when it is gone."""
        process = int((self.folder / f"{daemon}.pid").read_text())
        os.kill(process, number)
        self.wait_for(lambda: not _lives(process))

    def stop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ask("scancel", "--signal=KILL", "--full", f"--user={_user()}")
            self.ask("scancel", f"--user={_user()}")
        for daemon in ("slurmctld", *self.nodes, "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{daemon}.pid").read_text()), signal.SIGTERM)
        _, left = psutil.wait_procs(self._daemons(), timeout=5.0)
        for process in left:  # slurmd waits for steps that nobody ends any more
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _daemons(self) -> list[psutil.Process]:
        """All that work in the cluster's folder: the daemons, and slurmstepd of each step."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.cwd()).is_relative_to(self.folder):
                    found.append(process)
        return found

    def wait_for(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)


@contextlib.contextmanager
def running_cluster(folder: Path, *, more: str = "", cgroups: bool = False) -> Iterator[Cluster]:
    """Within this context SLURM's commands find this cluster, and jobs import what tests have."""
    cluster = Cluster(folder, more=more, cgroups=cgroups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
