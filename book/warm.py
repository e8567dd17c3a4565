"""Kernels that begin with PyTorch loaded: each is a fork of one process.

A chapter spends seconds on starting Python and on imports that nearly all chapters
share. `make chapters` lets one process do so, once; for each chapter it forks, and the
fork becomes the kernel. A chapter finds its names as empty as ever. `make execute`,
whose outputs are compared with these, starts each kernel from nothing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import import_module

LAUNCHER = ["-m", "ipykernel_launcher", "-f"]
SHARED = ("ipykernel.kernelapp", "matplotlib.figure", "torch", "einops", "jaxtyping")


class Kernel:
    """A kernel that another process has forked; to jupyter_client, a `Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 1  # it has ended; nobody asks how

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return 1

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # a process that has ended needs none
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@cache
def process() -> subprocess.Popen:
    """The process that has all loaded; it ends with this one, whose pipe it reads."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], **pipes)


def launch(cmd: list[str], *, env: dict[str, str], cwd: str, **_) -> Kernel:
    """In the place of `jupyter_client.launcher.launch_kernel`."""
    *_, file = cmd
    assert cmd[1:] == [*LAUNCHER, file], cmd
    print(json.dumps([file, env, cwd]), file=process().stdin, flush=True)
    return Kernel(int(process().stdout.readline()))


def become_kernel(file: str, env: dict[str, str], cwd: str) -> None:
    """Be what `python -m ipykernel_launcher -f file` would be, in this process."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # before anyone knows of it, and could send signals to its group
    print(os.getpid(), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [LAUNCHER[1], "-f", file]
    IPKernelApp.launch_instance()


def main() -> None:
    del sys.path[0]  # a kernel does not look beside this file
    for name in SHARED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has ended is gone at once
    for line in sys.stdin:
        if os.fork() == 0:
            become_kernel(*json.loads(line))
            return


if __name__ == "__main__":
    main()
