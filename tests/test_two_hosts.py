"""Two machines that train one model: namespaces, each with processes and a network of its own, and a cable in between.

A machine is gone with all its processes when the first of its processes is killed, and so nothing is left behind.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import TORCHRUN, assert_same_end, environment, write_data
from test_parallel import wait_for_step

pytest.importorskip("torch", reason="several processes need PyTorch")
pytest.importorskip("h5py")

TOOLS = ("ip", "unshare", "nsenter")
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # known inside the namespaces only
INTERFACE = "cable"
LIFE = 180  # seconds after which a machine goes by itself, whatever becomes of the tests
ARGUMENTS = ["--dtype", "float64", "--hidden-dim", 24, "--wordvec-dim", 8, "--batch-size", 12, "--steps", 400]
ARGUMENTS += ["--validate-every", 100, "--save-every", 20]


def tool(name):
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def why_not():
    """Why there can be no namespaces here; "" if there can."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    missing = [name for name in TOOLS if not tool(name)]
    if missing:
        return f"{', '.join(missing)} are not installed"
    try:
        subprocess.run([tool("unshare"), "--net", "--pid", "--fork", "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"network namespaces need root: {error.stderr.decode().strip()}"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it runs")


class Host:
    """A machine: its first process, which does nothing, and those that are started in it."""

    def __init__(self, address, log):
        self.address, self.log = address, log
        command = [tool("unshare"), "--net", "--pid", "--fork", "--kill-child", "sleep", str(LIFE)]
        self.unshare = subprocess.Popen(command)
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
        end = time.monotonic() + 10
        while not children.read_text().split() and time.monotonic() < end:
            time.sleep(0.01)
        self.first = children.read_text().split()[0]
        self.inside = [tool("nsenter"), "--target", self.first, "--net", "--pid"]
        self.run(tool("ip"), "link", "set", "lo", "up")

    def run(self, *command):
        subprocess.run([*self.inside, *command], check=True)

    def torchrun(self, *arguments):
        """Start torchrun, as on each of two machines."""
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400", "--rdzv-id=captions"]
        # Which of them keeps the rendezvous torchrun tells by names, which these machines have none of. One that is
        # gone is known to be after so many seconds times attempts, instead of fifteen seconds.
        options = {"is_host": int(self.address == ADDRESSES[0]), "keep_alive_interval": 1, "keep_alive_max_attempt": 2}
        rendezvous += ["--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in options.items())]
        rendezvous += [f"--local-addr={self.address}"]
        command = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", *rendezvous]
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*self.inside, *command, "-m", "fastrnn", "train", *map(str, arguments)],
                stdout=log,
                stderr=log,
                env=environment(
                    GLOO_SOCKET_IFNAME=INTERFACE,
                    FASTRNN_NUM_THREADS="1",
                    # Or a machine that comes back is not told where the others meet.
                    TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
                ),
            )

    def worker(self):
        """The process that trains, as seen from outside."""
        where = os.readlink(f"/proc/{self.first}/ns/net")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if os.readlink(entry / "ns/net") == where and b"torch.distributed.run" not in arguments:
                    if b"fastrnn" in arguments:
                        return int(entry.name)
            except OSError:
                pass  # it has just ended
        raise AssertionError("no worker")

    def die(self):
        """All of its processes at once."""
        self.unshare.kill()
        self.unshare.wait()


def connect(one, other):
    ends = ["name", INTERFACE, "netns", one.first, "type", "veth", "peer", "name", INTERFACE, "netns", other.first]
    subprocess.run([tool("ip"), "link", "add", *ends], check=True)
    for host in (one, other):
        host.run(tool("ip"), "address", "add", f"{host.address}/24", "dev", INTERFACE)
        host.run(tool("ip"), "link", "set", INTERFACE, "up")


@pytest.fixture
def machines(tmp_path):
    """Makes two connected machines; or one in the place of the other, which is gone."""
    made = []

    def make(stays=None):
        hosts = [stays] if stays else []
        for host in hosts:  # the kernel takes the other end of a lost machine's cable away in its own time
            subprocess.run([*host.inside, tool("ip"), "link", "delete", INTERFACE], capture_output=True)
        for number in range(len(hosts), 2):
            hosts.append(Host(ADDRESSES[number], tmp_path / f"log.{number}"))
            made.append(hosts[-1])
        connect(*hosts)
        return hosts

    yield make
    for host in made:
        host.die()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def ended(hosts, started, seconds=90):
    """Wait for the torchruns, which must all end well."""
    end = time.monotonic() + seconds
    for host, process in zip(hosts, started, strict=True):
        assert process.wait(max(0, end - time.monotonic())) == 0, host.log.read_text()


def test_two_machines_train_as_one_process_does_and_one_may_die(machines, data, tmp_path):
    one = [sys.executable, "-m", "fastrnn", "train", data, "--out", tmp_path / "one", "--threads", 1, *ARGUMENTS]
    subprocess.run([*map(str, one)], check=True, env=environment(), stdout=subprocess.DEVNULL)

    run = tmp_path / "undisturbed"
    hosts = machines()
    arguments = [data, "--out", run, "--resume", *ARGUMENTS]
    ended(hosts, [host.torchrun(*arguments) for host in hosts])
    assert_same_end(run, tmp_path / "one")

    run = tmp_path / "disturbed"
    arguments = [data, "--out", run, "--resume", *ARGUMENTS]
    started = [host.torchrun(*arguments) for host in hosts]
    wait_for_step(run, 60)
    os.kill(hosts[1].worker(), signal.SIGKILL)
    wait_for_step(run, 180)
    hosts[1].die()
    started[1].wait()
    hosts = machines(stays=hosts[0])
    started[1] = hosts[1].torchrun(*arguments)
    ended(hosts, started)
    for name in ("last.h5", "best.h5"):
        assert (run / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    said = "".join(host.log.read_text() for host in hosts)
    begun = [int(step) for step in re.findall(r"resume +from step (\d+) of 400", said)]
    assert len(begun) == 2 and 60 <= begun[0] < begun[1] and 180 <= begun[1] < 400
