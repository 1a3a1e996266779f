"""Which process of how many this one is, and a trainer that lets them work together.

Used by `training` and by the job of `embedding`. `torchrun` and Slurm's `srun` start the same
command several times and leave word in the environment; Lightning reads it, here and nowhere else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from tqdm.auto import tqdm

from siamcam_lib.errors import SiamcamError

PATIENCE = timedelta(days=1)
"""How long a process that has done its share waits for the others. One that died is noticed at
once, by `torchrun` or by ``srun --kill-on-bad-exit``."""

_ENDED = (
    "Another process of this job has ended before its work was done; its own message says why. "
    "Start the job again: what is finished is kept."
)
_GONE = re.compile(r"gloo|nccl|connection|peer|socket|broken pipe", re.IGNORECASE)  # in its words


@dataclass(frozen=True)
class Processes:
    """The processes of a job, all of which were started with the same command.

    Attributes:
        count: How many there are on all machines.
        rank: Which one this is, from 0.
        each: How many there are on each machine.
    """

    count: int
    rank: int
    each: int
    _environment: ClusterEnvironment = field(repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that says and writes what is said and written once."""
        return self.rank == 0

    def device(self, module: torch.nn.Module) -> torch.device:
        """Where a module works: one process leaves it where it is, several take a GPU each."""
        if self.count > 1:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        like = next(module.parameters(), None)
        return torch.device("cpu") if like is None else like.device

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            with _others():
                torch.distributed.barrier()

    def agree(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values."""
        if self.count > 1:
            with _others():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)

    def total(self, number: int, device: torch.device) -> int:
        """The sum of every process's number; waits for all of them."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=device)
        with _others():
            torch.distributed.all_reduce(numbers)
        return int(numbers)

    def alike(self, text: str, device: torch.device) -> bool:
        """Whether all processes give the same text; waits for all of them."""
        own = torch.tensor(list(hashlib.sha256(text.encode()).digest()), device=device)
        first = own.clone()
        self.agree([first])
        return self.total(int(not torch.equal(own, first)), device) == 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """What breaks off inside because another process is gone is told in words."""
        try:
            yield
        except RuntimeError as error:  # also of the work itself, which is told as it is
            if self.count > 1 and _GONE.search(str(error)):
                raise SiamcamError(_ENDED) from error
            raise

    def trainer(self, device: torch.device, **options: Any) -> L.Trainer:
        """A Lightning trainer over these processes, on CPUs or with one GPU for each.

        Raises:
            SiamcamError: if the machines do not have what was asked for.
        """
        one = [device.index or 0] if device.type == "cuda" else 1
        several: dict[str, Any] = {} if self.count == 1 else {
            "strategy": DDPStrategy(
                find_unused_parameters=True, timeout=PATIENCE, process_group_backend=_backend()
            ),
            "num_nodes": self.count // self.each,
        }  # fmt: skip
        plugins = [self._environment, *options.pop("plugins", [])]
        try:
            return L.Trainer(
                accelerator=device.type, devices=one if self.count == 1 else self.each,
                plugins=plugins, logger=False, enable_model_summary=False,
                use_distributed_sampler=False, **several, **options,
            )  # fmt: skip
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise SiamcamError(_cannot(self.count, error)) from error


def processes() -> Processes:
    """What `torchrun` or `srun` says of the processes it started; one, where neither did.

    A batch file of Slurm that forgets `srun` runs one process, and does not wait for others.

    Raises:
        SiamcamError: if they were started in a way that Lightning cannot use.

    Example:
        >>> processes()
        Processes(count=1, rank=0, each=1)
    """
    try:
        found: ClusterEnvironment
        if TorchElasticEnvironment.detect():
            found, each = TorchElasticEnvironment(), os.environ.get("LOCAL_WORLD_SIZE")
        elif "SLURM_STEP_ID" in os.environ:  # set by srun alone
            found = SLURMEnvironment(auto_requeue=False)
            each = os.environ.get("SLURM_NTASKS_PER_NODE")
        else:
            return Processes(1, 0, 1, LightningEnvironment())
        count = found.world_size()
        if count == 1:  # of a larger share of a machine, perhaps
            return Processes(1, 0, 1, LightningEnvironment())
        if count % int(each or count):
            raise ValueError(f"{count} on machines of {each} each")
        return Processes(count, found.global_rank(), int(each or count), found)
    except (ValueError, KeyError, RuntimeError) as error:
        raise SiamcamError(_cannot("Several", error)) from error


def _backend() -> str:
    """What carries messages: the first group serves later work too, on whichever device."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def _others() -> Iterator[None]:
    """Say in words that another process is gone."""
    try:
        yield
    except RuntimeError as error:  # whatever the network of the processes stumbles over
        raise SiamcamError(_ENDED) from error


def _cannot(count: Any, error: Exception) -> str:
    return (
        f"{count} processes cannot work together here ({error}); start as many on each machine as "
        "it has GPUs, or any number where there is none: torchrun --nproc-per-node=N, or srun "
        "--ntasks-per-node=N."
    )


def step(what: str, progress: bool = True) -> bool:
    """Begin a step of work that takes long: whether to show a bar while it goes on.

    At a terminal and in a notebook a bar moves. Elsewhere, in a log, there is a line on stderr.

    Args:
        what: The line.
        progress: False shows neither.

    Example:
        >>> step("features of 3 images", progress=False)
        False
    """
    terminal = sys.stderr.isatty() and sys.stdout.isatty()  # Lightning's bars are on stdout
    # by its name: the notebook's bar, if imported, brings IPython and its widgets along
    bar = terminal or any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    if progress and not bar:
        print(what, file=sys.stderr, flush=True)
    return progress and bar


@contextmanager
def training_quietly() -> Iterator[None]:
    """A trainer's work without what Lightning tells those who write trainers, and with Ctrl-C.

    Lightning answers Ctrl-C by ending the process, and ignores it from then on. Here it is a
    `KeyboardInterrupt`, as everywhere, and stays one.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except SystemExit as ended:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from ended
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
