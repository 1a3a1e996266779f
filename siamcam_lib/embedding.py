"""A gallery on disk, however large, by however many processes, whatever interrupts them.

Taught in the chapter on galleries and beyond one machine. The work is cut into shards. A shard is
there, whole, or it is not, and says itself of what it was made: whoever calls again computes those
that are missing or out of date, and no other. Lightning starts the processes' common work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from siamcam_lib.allocator import memory_kept
from siamcam_lib.embedder import Explainable
from siamcam_lib.errors import GalleryError
from siamcam_lib.looking import Decoded, Pictures, check_embeddable, decoded, look, repeated
from siamcam_lib.processes import Processes, processes, training_quietly
from siamcam_lib.shards import (
    KINDS,
    TABLE,
    blocks,
    half,
    join,
    refuse_another,
    saying,
    shard_name,
    write_shard,
    write_table,
)

Rows = dict[str, np.ndarray]

ABANDONED = 3600
"""Seconds after which a file that is half written belongs to nobody: a shard takes far less."""


@dataclass(frozen=True)
class Embedded:
    """What `embed` did.

    Attributes:
        images: How many images the gallery holds.
        looked_at: How many of them this call looked at, in all processes together.
        shards: How many files hold them.
        processes: How many processes worked.
        first: Whether this process is the one that says so.
    """

    images: int
    looked_at: int
    shards: int
    processes: int
    first: bool


def embed(
    folder: str | Path,
    seeing: Explainable,
    pictures: Pictures,
    *,
    batch_size: int = 32,
    images_per_shard: int = 1024,
    progress: bool = True,
) -> Embedded:
    """Look at every picture once and write a gallery; take up what an earlier call left.

    Every process that `torchrun` or `srun` started makes this same call. Shard k is the work of
    process k modulo their number; the table, which makes a gallery of the shards, is written last
    and by the first process alone. How an image is rounded depends on its batch, and no batch
    crosses a shard: however many processes there are, and whatever interrupts them, the numbers
    are the same to the last bit on machines of one kind, if the batches are of one size.

    Args:
        folder: Where to write.
        seeing: The network. One process uses it where it is; of several each takes a GPU, if the
            machine has any.
        pictures: Whatever is to be looked at.
        batch_size: Images that go through the network together. A later call may take another,
            where memory does not suffice, say.
        images_per_shard: Images in a file: what an interruption costs each process at most.
        progress: Show a progress bar, of the first process.

    Raises:
        GalleryError: if there is no picture, the folder cannot be written or holds something
            else, or the processes do not all see the same folder, pictures and network.
        ImageError: if a picture cannot be read.
        SiamcamError: if the processes cannot work together.

    Example:
        >>> import siamcam_lib as sc, tempfile
        >>> from siamcam_lib.embedder import as_explainable
        >>> seeing = as_explainable(sc.SiameseNet("resnet18", pretrained=False, image_size=64))
        >>> pictures = Pictures(sc.datasets.load("scenes/flowers", n=10))
        >>> folder = tempfile.mkdtemp()
        >>> embed(folder, seeing, pictures, images_per_shard=4, progress=False).looked_at
        10
        >>> (Path(folder) / "shard-00001.safetensors").unlink()
        >>> embed(folder, seeing, pictures, images_per_shard=4, progress=False).looked_at
        4
    """
    ours = processes()
    job = _Job(Path(folder), seeing, pictures, batch_size, images_per_shard)
    progress = progress and ours.first
    mine = [
        k for k in tqdm(range(ours.rank, job.shards, ours.count), desc="comparing", unit="shard",
                        delay=2, leave=False, disable=not progress)
        if job.is_due(k)
    ]  # fmt: skip
    looked_at = _work(job, mine, ours, progress) if mine or ours.count > 1 else 0
    if ours.first:
        job.close()
    ours.wait()
    return Embedded(len(pictures), looked_at, job.shards, ours.count, ours.first)


class _Job:
    """Which shards there are to be, which of them are there, and what makes them this job's."""

    def __init__(
        self, folder: Path, seeing: Explainable, pictures: Pictures, batch: int, per: int
    ) -> None:
        check_embeddable(pictures, batch, per)
        self.folder, self.seeing, self.pictures = folder, seeing, pictures
        self.batch, self.per, self.shards = batch, per, -(-len(pictures) // per)
        self.digest = seeing.digest()
        self.about = {
            "network": self.digest, "images": pictures.names(), "images_per_shard": str(per)
        }  # fmt: skip
        with saying(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("shard-*.safetensors")):
            self._check(path)

    def _check(self, path: Path) -> None:
        """Raise `GalleryError` where a shard is another job's; a damaged one is made again."""
        try:
            with safe_open(path, framework="numpy") as file:
                kept = file.metadata() or {}
        except (SafetensorError, OSError):
            return
        other = [name for name, value in self.about.items() if kept.get(name) != value]
        if not other:
            return
        what = f" (other {', '.join(other)})" if kept else ""
        refuse_another(self.folder, what)
        raise GalleryError(
            f"{self.folder} holds part of another gallery{what}; call with the arguments that one "
            "was begun with, give another folder, or delete this one."
        )

    def span(self, number: int) -> range:
        """Places of the pictures of a shard."""
        return range(number * self.per, min((number + 1) * self.per, len(self.pictures)))

    def batches(self, number: int) -> list[range]:
        span = self.span(number)
        return [span[start:stop] for start, stop in blocks(len(span), self.batch)]

    def is_due(self, number: int) -> bool:
        """Whether a shard is missing or damaged, or a picture of it is another than it was."""
        keys = self._keys(number)
        return keys is None or not self.pictures.are(keys, self.span(number).start)

    def begin(self, due: int, ours: Processes, device: torch.device) -> None:
        """See to it that all processes do the same; the gallery is none until it is closed."""
        if not ours.alike(json.dumps(self.about), device):
            raise GalleryError(
                "The processes of this job do not all have the same pictures, network and "
                "settings; start it again, and leave the pictures as they are meanwhile."
            )
        if ours.total(due, device):
            if ours.first:
                with saying(self.folder):
                    (self.folder / TABLE).unlink(missing_ok=True)
            ours.wait()

    def write(self, number: int, rows: Rows) -> None:
        write_shard(self.folder, number, rows, self.about)

    def close(self) -> None:
        """Make a gallery of the shards: the same picture gets the same row, the table comes."""
        found = []
        for number in range(self.shards):
            path = self.folder / shard_name(number)
            self._check(path)
            if (rows := self._keys(number)) is None:
                raise GalleryError(
                    f"{path} is missing or damaged, though a process of this job has written it; "
                    "all machines must see the same folder, and nobody else may write there."
                )
            found.append(rows)
        keys = np.concatenate(found)
        copies: dict[int, list[tuple[int, int]]] = {}
        for later, first in repeated(keys):
            copies.setdefault(later // self.per, []).append((later % self.per, first))
        for number, places in copies.items():
            self._copy(number, places)
        write_table(
            self.folder, len(self.pictures), [shard_name(k) for k in range(self.shards)],
            {
                "threshold": self.seeing.threshold, "settings": self.seeing.settings,
                "shape": self._read(0, "maps")["maps"].shape[1:], "digest": self.digest,
                "contents": hashlib.sha256(keys.data).hexdigest(), "names": self.about["images"],
            },
        )  # fmt: skip
        for name in ("shard-*", f"{TABLE}.*"):  # left by writes that were killed
            for left in self.folder.glob(f".{name}.part"):
                with suppress(OSError):
                    if time.time() - left.stat().st_mtime > ABANDONED:
                        left.unlink()

    def _copy(self, number: int, places: list[tuple[int, int]]) -> None:
        """Give pictures of a shard the rows they had where they came first."""
        rows, changed = self._read(number, *KINDS), False
        for place, first in places:
            shard, row = divmod(first, self.per)
            source = self._read(shard, "maps", "scale", "embedding", rows=slice(row, row + 1))
            for kind, values in source.items():
                if not np.array_equal(rows[kind][place], values[0]):
                    rows[kind][place], changed = values[0], True
        if changed:
            self.write(number, rows)

    def _keys(self, number: int) -> np.ndarray | None:
        """Keys of a shard; None where it is missing, damaged or of another length."""
        try:
            keys = self._read(number, "key")["key"]
        except (SafetensorError, OSError):
            return None
        return keys if len(keys) == len(self.span(number)) else None

    def _read(self, number: int, *kinds: str, rows: slice = slice(None)) -> Rows:
        with safe_open(self.folder / shard_name(number), framework="numpy") as file:
            return {kind: file.get_slice(kind)[rows] for kind in kinds}


def _work(job: _Job, mine: list[int], ours: Processes, progress: bool) -> int:
    """Compute this process's shards; return how many images all processes looked at."""
    network = job.seeing.network
    device = ours.device(network)
    home = next((p.device for p in network.parameters()), torch.device("cpu"))
    bar = tqdm(total=sum(len(job.span(k)) for k in mine), desc="gallery", unit="image",
               disable=not progress, leave=False)  # fmt: skip
    task = _Looking(job, mine, ours, bar)
    kept = memory_kept() if device.type == "cpu" else nullcontext()
    with bar, kept, training_quietly():
        trainer = ours.trainer(device, enable_checkpointing=False, enable_progress_bar=False)
        try:
            trainer.predict(task, _Batches(job, mine), return_predictions=False)
        finally:
            network.to(home)  # the trainer may have moved it
    return ours.total(task.looked_at, device)


class _Batches:
    """Decoded batches of shards, one after the other."""

    def __init__(self, job: _Job, shards: list[int]) -> None:
        self.job, self.parts = job, [part for k in shards for part in job.batches(k)]
        self.parts = self.parts or [range(0)]  # Lightning wants a batch of every process

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[Decoded]]:
        return decoded(self.job.pictures, self.parts, self.job.seeing.image_size)


class _Looking(L.LightningModule):
    """What a process does with a batch: look, and write a shard where it is complete."""

    def __init__(self, job: _Job, shards: list[int], ours: Processes, bar: tqdm) -> None:
        super().__init__()
        self.network = job.seeing.network  # for the trainer to move
        self.job, self.left, self.ours, self.bar = job, list(reversed(shards)), ours, bar
        self.rows: list[Rows] = []
        self.looked_at = 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # the network takes its pixels there itself

    def on_predict_start(self) -> None:
        self.job.begin(len(self.left), self.ours, self.device)

    def predict_step(self, batch: list[Decoded], index: int) -> None:
        if not batch:
            return
        rows = look(self.job.seeing, batch)
        rows["maps"], rows["scale"] = half(rows["maps"])
        self.rows.append(rows)
        self.looked_at += len(batch)
        self.bar.update(len(batch))
        if sum(len(part["size"]) for part in self.rows) == len(self.job.span(self.left[-1])):
            self.job.write(self.left.pop(), join(self.rows))
            self.rows = []
