"""Several processes, started with one command, do together what one does alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import siamcam_lib as sc
from siamcam_lib import embedding, training
from siamcam_lib.cache import FeatureCache
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import GalleryError, SiamcamError, TrainingError
from siamcam_lib.looking import Pictures
from siamcam_lib.processes import Processes, processes
from siamcam_lib.shards import KINDS, Shards

N, PER = 30, 4

# --- what the environment says --------------------------------------------------------------------


def torchrun(rank: int, count: int = 2, each: int = 2) -> dict[str, str]:
    """What `torchrun` leaves in the environment."""
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank % each), "LOCAL_WORLD_SIZE": str(each),
        "GROUP_RANK": str(rank // each),
    }  # fmt: skip


def srun(rank: int, count: int = 2, each: int = 2) -> dict[str, str]:
    """What `srun` leaves there."""
    return {
        "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "embed",
        "SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(each),
        "SLURM_NNODES": str(count // each), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % each), "SLURM_NODEID": str(rank // each),
    }  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    def put(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("starter", [torchrun, srun])
def test_who_is_who(environment, starter):
    environment(starter(rank=5, count=8, each=4))
    found = processes()
    assert (found.count, found.rank, found.each, found.first) == (8, 5, 4, False)


def test_one_process_needs_no_starter(environment):
    assert (processes().count, processes().first) == (1, True)
    # a batch file of Slurm that forgets srun: four tasks were asked for, one process runs
    environment({k: v for k, v in srun(0, 4, 4).items() if k != "SLURM_STEP_ID"})
    assert processes().count == 1


def test_one_process_of_a_larger_share_is_one(environment):
    environment(srun(0, count=1, each=1) | {"SLURM_NTASKS_PER_NODE": "4"})  # srun -n1 in salloc
    assert (processes().count, processes().each, processes().first) == (1, 1, True)


@pytest.mark.parametrize(("cuda", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_messages_go_between_devices_of_either_kind(environment, monkeypatch, cuda, backend):
    environment(torchrun(rank=1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    made = processes().trainer(torch.device("cpu"), enable_checkpointing=False)
    assert made.strategy._get_process_group_backend() == backend


def test_srun_is_told_of_the_cores_that_sbatch_was_asked_for():
    for script in (Path(__file__).parents[2] / "examples").glob("*.slurm"):
        text = script.read_text("utf-8")
        assert "#SBATCH --cpus-per-task=" in text
        assert text.index("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK") < text.index("\nsrun ")


@pytest.mark.parametrize(
    "values",
    [
        torchrun(0, count=3, each=2),
        torchrun(0) | {"WORLD_SIZE": "two"},
        torchrun(0) | {"LOCAL_WORLD_SIZE": "x"},
        {"TORCHELASTIC_RUN_ID": "none"},
        {k: v for k, v in srun(0).items() if k != "SLURM_NTASKS_PER_NODE"},
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "many"},
    ],
)
def test_what_makes_no_sense_is_told(environment, values):
    environment(values)
    with pytest.raises(SiamcamError, match="cannot work together here .*torchrun --nproc"):
        processes()


@pytest.mark.parametrize("starter", [torchrun, srun])
def test_more_processes_than_devices_are_told(environment, monkeypatch, starter):
    environment(starter(rank=1))
    module = nn.Linear(2, 2)
    assert processes().device(module).type == "cpu" or torch.cuda.is_available()
    with pytest.raises(SiamcamError, match="2 processes cannot work together .* as it has GPUs"):
        Processes(2, 1, 2, processes()._environment).trainer(torch.device("cuda", 0))


# --- together -------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A backbone with what makes training on several processes hard: batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1),
                nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
            )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def network() -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sc.SiameseNet(Tiny(), embed_dim=8, image_size=48)


class Tiles:
    """Noisy tiles of one tint a class."""

    origin = "folder"
    tints = ((120, 60, 60), (60, 120, 60), (60, 60, 120))

    def image(self, item: str) -> Image.Image:
        label, number = map(int, item.split("/"))
        random = np.random.default_rng([label, number])
        pixels = random.uniform(0, 60) + random.normal(self.tints[label], 20, (48, 48, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def masks(self, item: str) -> dict[str, np.ndarray]:
        return {}

    def digest(self, item: str) -> str:
        return hashlib.sha256(f"tile {item}".encode()).hexdigest()


def tiles() -> sc.datasets.ImageSet:
    items = tuple(f"{k % 3}/{k}" for k in range(90))
    names, numbers = ("red", "green", "blue"), np.arange(90)
    return sc.datasets.ImageSet("tiles", names, items, numbers % 3, numbers, Tiles())


def embed(folder: Path) -> int:
    images = Pictures(tiles().subset([*range(N - 1), 3]))  # one of them twice
    seeing = as_explainable(network().eval())
    return embedding.embed(folder, seeing, images, images_per_shard=PER, progress=False).looked_at


RECIPE = sc.Recipe(
    epochs=6, batch_size=16, steps=4, learning_rate=3e-2, backbone_rate=1e-2, dropout=0.1,
    crop_size=40,
)  # fmt: skip


def fit(root: Path, name: str, rank: int, finetune: bool, **recipe) -> None:
    net = network()
    done = sc.fit(
        net, sc.pairs.split(tiles(), seed=0), 0, finetune=finetune, folder=root / name,
        recipe=replace(RECIPE, **recipe), cache=FeatureCache(root / "f.sqlite"), progress=False,
    )  # fmt: skip
    net.save(root / f"{name}-{rank}.safetensors")
    told = {"history": done.history, "resumed_at": done.resumed_at, "threshold": done.threshold}
    (root / f"{name}-{rank}.json").write_text(json.dumps(told))


def dying(owner, name: str, at: int) -> None:
    """Have this process killed at call `at` of a function."""
    known, count = getattr(owner, name), iter(range(10**9))

    def call(*args):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return known(*args)

    setattr(owner, name, call)


def embed_with_a_death(root: Path, rank: int) -> None:
    if rank == 1:
        dying(embedding, "look", 2)
    embed(root / "died")


def fit_with_a_death(root: Path, rank: int) -> None:
    if rank == 1:
        dying(training._Task, "training_step", 5)  # in the third epoch
    try:
        fit(root, "fit died", rank, True)
    except SiamcamError as error:
        (root / "fit death said").write_text(str(error))
        raise


def embed_others(root: Path, rank: int) -> None:
    """A picture has come between the listings of both."""
    images = Pictures(tiles().subset(range(N - rank)))
    with pytest.raises(GalleryError, match="do not all have the same pictures"):
        embedding.embed(
            root / "others", as_explainable(network().eval()), images, images_per_shard=PER,
            progress=False,
        )  # fmt: skip


TASKS: list[tuple[str, Callable, Callable[[Path, int], object]]] = [
    ("torchrun", torchrun, lambda root, rank: embed(root / "torchrun")),
    ("srun", srun, lambda root, rank: embed(root / "srun")),
    ("others", torchrun, embed_others),
    ("death", torchrun, embed_with_a_death),
    ("after death", torchrun, lambda root, rank: (root / f"looked-{rank}").write_text(
        str(embed(root / "died")))),
    ("frozen", torchrun, lambda root, rank: fit(root, "frozen", rank, False)),
    ("finetune", torchrun, lambda root, rank: fit(root, "finetune", rank, True)),
    ("patience", torchrun, lambda root, rank: fit(root, "patience", rank, True, patience=1)),
    ("fit death", torchrun, fit_with_a_death),
    ("after fit death", torchrun, lambda root, rank: fit(root, "fit died", rank, True)),
]  # fmt: skip


def free_port() -> str:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return str(tried.getsockname()[1])


def main(root: Path) -> None:
    """In a process of its own: for each task two children that do it together."""
    torch.set_num_threads(1)  # a child has no threads but its own
    embed(root / "alone")  # and all is loaded that is loaded late
    fit(root, "alone fit", 0, True)
    ended = {}
    for name, starter, act in TASKS:
        network_is = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        children = []
        for rank in range(2):
            if (child := os.fork()) == 0:
                os.environ.update(starter(rank) | network_is)
                code = 1
                try:
                    act(root, rank)
                    code = 0
                except BaseException as error:
                    print(f"{name}, rank {rank}: {type(error).__name__}: {error}", flush=True)
                finally:
                    os._exit(code)
            children.append(child)
        ended[name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (root / "ended.json").write_text(json.dumps(ended))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The folder where all tasks were done, once for all tests."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    root = tmp_path_factory.mktemp("processes")
    with open(root / "said.txt", "w") as said:
        subprocess.run([sys.executable, __file__, str(root)], stdout=said,
                       stderr=subprocess.STDOUT, timeout=500)  # fmt: skip
    assert (root / "ended.json").exists(), (root / "said.txt").read_text()[-3000:]
    return root


def ended(root: Path) -> dict[str, list[int]]:
    return json.loads((root / "ended.json").read_text())


def rows(folder: Path) -> dict[str, np.ndarray]:
    found = Shards(folder)
    return {kind: found.read(kind, 0, len(found)) for kind in KINDS}


def check_same(one: Path, two: Path) -> None:
    for kind, values in rows(one).items():
        np.testing.assert_array_equal(values, rows(two)[kind])
    assert (one / "gallery.json").read_bytes() == (two / "gallery.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["torchrun", "srun"])
def test_two_processes_embed_as_one_does_to_the_last_bit(done, starter):
    assert ended(done)[starter] == [0, 0], (done / "said.txt").read_text()[-3000:]
    check_same(done / "alone", done / starter)


@pytest.mark.slow
def test_processes_that_see_other_pictures_are_told(done):
    assert ended(done)["others"] == [0, 0], (done / "said.txt").read_text()[-3000:]
    assert not list((done / "others").iterdir())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_the_next_call_finishes_it(done):
    first, second = ended(done)["death"]
    assert second == -signal.SIGKILL and first == 1
    assert ended(done)["after death"] == [0, 0], (done / "said.txt").read_text()[-3000:]
    check_same(done / "alone", done / "died")
    looked = {int((done / f"looked-{rank}").read_text()) for rank in range(2)}
    # the first had done its four shards, 16 pictures; the second two of its own, 8
    assert looked == {N - 16 - 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen", "finetune", "patience"])
def test_two_processes_train_one_network(done, name):
    assert ended(done)[name] == [0, 0], (done / "said.txt").read_text()[-3000:]
    one, two = (load_file(done / f"{name}-{rank}.safetensors") for rank in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    told = [json.loads((done / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["threshold"] == told[1]["threshold"]
    losses = [entry["train_loss"] for entry in told[0]["history"]]
    assert losses != [entry["train_loss"] for entry in told[1]["history"]]  # of other batches
    if name != "patience":
        assert len(losses) == RECIPE.epochs and np.mean(losses[-2:]) < 0.95 * losses[0]
    start = {k: v for k, v in network().state_dict().items() if k.startswith("backbone")}
    assert all(torch.equal(one[k], v) for k, v in start.items()) == (name == "frozen")


@pytest.mark.slow
def test_a_training_of_which_a_process_dies_is_taken_up(done):
    first, second = ended(done)["fit death"]
    assert second == -signal.SIGKILL and first == 1
    assert "Another process of this job has ended" in (done / "fit death said").read_text()
    assert ended(done)["after fit death"] == [0, 0], (done / "said.txt").read_text()[-3000:]
    assert json.loads((done / "fit died-0.json").read_text())["resumed_at"] == 2
    one, two = (load_file(done / f"{name}-0.safetensors") for name in ("finetune", "fit died"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_another_number_of_processes_is_another_training(done):
    sheet = json.loads((done / "alone fit" / "training.json").read_text())
    with pytest.raises(TrainingError, match="other processes;"):
        training._claim(done / "alone fit", sheet | {"processes": 2}, processes())


def test_more_processes_than_batches_are_told():
    batches = training.Batches(np.repeat([0, 1], 8), 8)
    with pytest.raises(TrainingError, match=r"An epoch has 2 batches, fewer .*\(3\)"):
        training._Share(batches, Processes(3, 0, 3, None))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_equal_and_nobody_has_anothers_batch(count):
    batches = training.Batches(np.repeat([0, 1], 40), 10)
    shares = [
        list(training._Share(batches, Processes(count, r, count, None))) for r in range(count)
    ]
    assert {len(share) for share in shares} == {8 // count}
    every = list(batches)[: 8 // count * count]
    assert [shares[k % count][k // count] for k in range(len(every))] == every


if __name__ == "__main__":
    main(Path(sys.argv[1]))
