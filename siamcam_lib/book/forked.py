"""Forks a process for each chapter from one that has imported what the chapters share.

`python forked.py torch scipy:stats ...` does so and then, for each message on its standard input, a
Unix socket, forks. The new process takes the three streams that came with the message for
its own and forks once more: one of the two becomes a kernel, the other executes a notebook in it,
as `worker.py` does. Importing PyTorch and its kin takes longer than many a chapter.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

sys.path.insert(0, str(Path(__file__).parent))
import worker  # noqa: E402  # by its place: the chapters' library may be another one

del sys.path[0]


def serve(shared: list[str]) -> None:
    """Import what is `shared`, then fork whenever asked, until the other end of the socket closes.

    Args:
        shared: Modules, ``"torch"``, and names in modules, ``"siamcam_lib:fit"``.
    """
    # pandas, for one, asks when it is imported whether there is a kernel, and prints accordingly
    builtins.get_ipython = lambda: SimpleNamespace(kernel="to come")  # type: ignore[attr-defined]
    for name in shared:
        module, _, wanted = name.partition(":")
        with suppress(Exception):  # the chapter that wants it will tell
            found = import_module(module)
            if wanted and not hasattr(found, wanted):  # many are imported when they are asked for
                import_module(f"{module}.{wanted}")
    del builtins.get_ipython  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    asked = socket.socket(fileno=os.dup(0))
    while True:
        note, streams, *_ = socket.recv_fds(asked, 1, 3)
        if not note:
            os.killpg(0, signal.SIGKILL)  # all is over: what still runs is not wanted
        if pid := os.fork():
            asked.sendall(pid.to_bytes(8, "big"))
            for stream in streams:
                os.close(stream)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return _work()


def _work() -> None:
    """Be the parent, which executes the notebook it reads of, or the child, its kernel."""
    end, start = os.pipe()
    pid = os.fork()
    os.close(start if pid == 0 else end)
    if pid == 0:
        return _be_kernel(end)
    _Forked.waiting = _Kernel(pid, start)
    place = EntryPoint(worker.KERNEL, f"{__name__}:_Forked", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.instance().provisioners[worker.KERNEL] = place
    print(json.dumps(worker.execute(json.load(sys.stdin), provisioner=worker.KERNEL)))


def _be_kernel(end: int) -> None:
    """Wait for the word where to listen, and be what `python -m ipykernel_launcher` would be."""
    with open(end, encoding="utf-8") as pipe:
        told = pipe.read()
    if not told:  # the notebook could not be read
        return
    start = json.loads(told)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(start["cwd"])
    os.environ.clear()
    os.environ.update(start["env"])
    sys.argv = start["command"][2:]
    # the environment was asked for the parent, whose end is the kernel's, when this was imported
    IPKernelApp.launch_instance(argv=sys.argv[1:], parent_handle=int(os.environ["JPY_PARENT_PID"]))


class _Kernel:
    """What Jupyter wants to know of a kernel's process, which another way started."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self._pipe = pid, pipe
        self._code: int | None = None

    def tell(self, **start: Any) -> None:
        with open(self._pipe, "w", encoding="utf-8") as pipe:
            json.dump(start, pipe)

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Forked(LocalProvisioner):
    """Lets a kernel begin that was forked beforehand, where Jupyter would start a process."""

    waiting: _Kernel
    process: Any = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        env = kwargs["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        self.process = self.waiting
        self.pid = self.pgid = self.process.pid  # it begins a session of its own
        self.process.tell(command=cmd, cwd=str(kwargs.get("cwd") or os.getcwd()), env=env)
        return self.connection_info


if __name__ == "__main__":
    serve(sys.argv[1:])
