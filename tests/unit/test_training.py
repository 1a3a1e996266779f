"""Training: it learns, it depends on its seed alone, and an interruption changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning.losses import SupConLoss
from torch import nn
from torchvision.transforms import v2
from tqdm.notebook import tqdm_notebook

import siamcam_lib as sc
from siamcam_lib import losses, processes, training
from siamcam_lib.augmentation import default_augmentation
from siamcam_lib.errors import ModelError, PairError, TrainingError
from siamcam_lib.features import FeatureCache, pooled_features
from siamcam_lib.identity import identity
from siamcam_lib.processes import Processes

# --- tiny data and nets -----------------------------------------------------------------------


class Tiles:
    """Noisy tiles of one tint a class, dark and bright ones: easy, once brightness is ignored."""

    origin = "folder"
    tints = ((90, 0, 0), (0, 90, 0), (0, 0, 90))

    def image(self, item: str) -> Image.Image:
        label, number = map(int, item.split("/"))
        random = np.random.default_rng([label, number])
        pixels = random.uniform(20, 140) + random.normal(self.tints[label], 30, (32, 32, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def masks(self, item: str) -> dict[str, np.ndarray]:
        return {}

    def digest(self, item: str) -> str:
        return hashlib.sha256(f"tile {item}".encode()).hexdigest()


def tiles(each: int = 16) -> sc.datasets.ImageSet:
    labels = np.repeat(np.arange(3), each)
    items = tuple(f"{c}/{k}" for c, k in zip(labels, np.tile(np.arange(each), 3), strict=True))
    names = ("red", "green", "blue")
    return sc.datasets.ImageSet("tiles", names, items, labels, np.arange(len(items)), Tiles())


def parts(each: int = 16) -> sc.pairs.Split:
    images = tiles(each)
    turn = np.arange(len(images)) % 4
    wanted = (turn < 2, turn == 2, turn > 2)
    return sc.pairs.Split(*(images.subset(np.flatnonzero(mask)) for mask in wanted))


class Tiny(nn.Module):
    """A convolutional backbone with everything that makes resuming hard: dropout, batch norm."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=4),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout2d(0.2),
                nn.Conv2d(8, 12, 3, stride=2),
                nn.ReLU(),
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Same(nn.Module):
    """A backbone that sees the same in every picture."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_ones(len(images), 4, 2, 2)


def tiny_net(start: int = 0, normalize: bool = True) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        return sc.SiameseNet(Tiny(start), embed_dim=8, image_size=32, normalize=normalize)


FROZEN = sc.Recipe(epochs=4, batch_size=12, steps=3, learning_rate=2e-2)
FINETUNE = sc.Recipe(epochs=3, batch_size=8, steps=3, crop_size=24, learning_rate=1e-2)


MODES = pytest.mark.parametrize("finetune", [False, pytest.param(True, marks=pytest.mark.slow)])


def train(net, split, cache, seed=0, finetune=False, **options):
    """`sc.fit` as all tests call it."""
    options = {"recipe": FINETUNE if finetune else FROZEN} | options
    return sc.fit(
        net, split, seed, finetune=finetune, cache=FeatureCache(cache), progress=False, **options
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs is a whole number from 1 on, not 0"),
        ({"epochs": 2.5}, "epochs is a whole number"),
        ({"batch_size": 1}, "batch_size is a whole number from 2 on"),
        ({"steps": 0}, "steps is a whole number"),
        ({"patience": True}, "patience is a whole number"),
        ({"crop_size": None}, "crop_size is a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is a number from 0 on, not nan"),
        ({"backbone_rate": -1e-3}, "backbone_rate is a number"),
        ({"weight_decay": "little"}, "weight_decay is a number"),
        ({"dropout": 1.0}, "dropout is a share, at least 0 and below 1, not 1.0"),
    ],
)
def test_a_recipe_of_no_use_is_refused(wrong, said):
    with pytest.raises(TrainingError, match=said):
        replace(FROZEN, **wrong)


def outcome(net: sc.SiameseNet, fit: sc.Fit) -> dict:
    """All that must be the same, whatever happened on the way: weights, history, threshold."""
    history = [{k: v for k, v in e.items() if k != "seconds"} for e in fit.history]
    state = {k: v.numpy().tobytes() for k, v in net.state_dict().items()}
    return state | {"history": history, "best": fit.best_epoch, "threshold": fit.threshold}


def differences(a: dict, b: dict) -> list[str]:
    return [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]


@pytest.fixture(scope="module")
def split():
    return parts()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "features.sqlite"


@pytest.fixture(scope="module")
def undisturbed(split, cache):
    """The outcome of a training that nothing interrupts, by mode; computed when asked for."""
    known: dict[bool, dict] = {}

    def of(finetune: bool) -> dict:
        if finetune not in known:
            net = tiny_net()
            known[finetune] = outcome(net, train(net, split, cache, finetune=finetune))
        return known[finetune]

    return of


@pytest.fixture(autouse=True)
def _as_found():
    """One thread, so that sums have one order; and Ctrl-C as it was."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, handler)


def on_step(act, monkeypatch=None):
    """Have `act(step, labels)` called before each training step."""
    known, count = training._Task.training_step, iter(range(10**9))

    def training_step(task, batch, batch_index):
        act(next(count), batch[1])
        return known(task, batch, batch_index)

    if monkeypatch is None:
        training._Task.training_step = training_step
    else:
        monkeypatch.setattr(training._Task, "training_step", training_step)


# --- what a fit is ----------------------------------------------------------------------------


def auc(net, split, cache) -> float:
    pairs = sc.pairs.sample(split.test, seed=0)
    options = {"cache": FeatureCache(cache), "progress": False}
    return sc.evaluate(net, pairs, bootstrap=10, **options).auc


def test_it_learns(split, cache):
    net = tiny_net(start=2)
    before = auc(net, split, cache)
    train(net, split, cache, recipe=replace(FROZEN, epochs=20, dropout=0.0))
    assert before < 0.9 and auc(net, split, cache) > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(split, cache, undisturbed):
    torch.manual_seed(12345)  # the caller's random numbers do not matter
    again, other = tiny_net(), tiny_net()
    fit = train(again, split, cache)
    assert differences(outcome(again, fit), undisturbed(False)) == []
    train(other, split, cache, seed=1)
    assert not torch.equal(again.projection.weight, other.projection.weight)


def test_a_fit_starts_the_head_afresh(split, cache, undisturbed):
    net = tiny_net()
    train(net, split, cache, seed=7)
    assert differences(outcome(net, train(net, split, cache)), undisturbed(False)) == []


def test_what_a_fit_tells(split, cache):
    net = tiny_net()
    fit = train(net, split, cache, seed=3)
    assert [entry["epoch"] for entry in fit.history] == [0, 1, 2, 3]
    for entry in fit.history:
        assert set(entry) == {"epoch", "train_loss", "val_auc", "seconds"}
        assert 0 <= entry["val_auc"] <= 1 and entry["seconds"] > 0
    best = max(entry["val_auc"] for entry in fit.history)
    assert fit.history[fit.best_epoch]["val_auc"] == best
    assert fit.threshold == net.threshold and 0 < fit.threshold < 1
    assert (fit.seed, fit.finetune, fit.resumed_at) == (3, False, 0)
    assert fit.loss == "supervised_contrastive" and fit.seconds > 0


def test_the_weights_of_the_best_epoch_are_kept(split, cache):
    """Kept are those of the epoch, not the last: its validation AUC can be computed again."""
    net = tiny_net()
    fit = train(net, split, cache, recipe=replace(FROZEN, learning_rate=0.5))
    options = {"cache": FeatureCache(cache), "progress": False}
    e = net.embed_pooled(pooled_features(net, split.val, **options))
    pairs, weight = sc.pairs.all_pairs(split.val)
    d = net.distance(e[pairs.a], e[pairs.b]).numpy()
    found = training.roc_auc_score(pairs.label, d, sample_weight=weight)
    assert found == pytest.approx(fit.history[fit.best_epoch]["val_auc"], abs=1e-9)


@MODES
def test_the_net_is_left_ready_to_be_used(split, cache, finetune):
    net = tiny_net()
    train(net, split, cache, finetune=finetune)
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.grad is None or not p.requires_grad for p in net.parameters())


def test_frozen_leaves_the_backbone_bit_identical(split, cache):
    net = tiny_net()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    train(net, split, cache)
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())


@pytest.mark.slow
def test_finetuning_trains_the_backbone(split, cache):
    net = tiny_net()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    fit = train(net, split, cache, finetune=True)
    after = net.backbone.state_dict()
    assert fit.finetune
    assert [k for k, v in before.items() if torch.equal(v, after[k])] == []


@pytest.mark.slow
def test_finetuning_is_the_same_whatever_mode_the_net_was_in(split, cache, undisturbed):
    """A net that was loaded, or fitted before, is in evaluation mode."""
    net = tiny_net().eval()
    fit = train(net, split, cache, finetune=True)
    assert differences(outcome(net, fit), undisturbed(True)) == []


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_every_objective_trains(split, cache, name):
    net = tiny_net(normalize=losses.OBJECTIVES[name].unit_length)
    fit = train(net, split, cache, loss=name, recipe=replace(FROZEN, epochs=1))
    assert fit.loss == name and np.isfinite(fit.history[0]["train_loss"])
    calibrated = (net.output.weight.item(), net.output.bias.item()) != (1.0, 0.0)
    assert calibrated  # on validation pairs, or by the loss itself


def test_plain_embeddings_get_a_loss_that_fits_them(split, cache):
    fit = train(tiny_net(normalize=False), split, cache, recipe=replace(FROZEN, epochs=1))
    assert fit.loss == "margin_all_pairs"


def test_a_given_threshold_is_used(split, cache):
    net = tiny_net()
    assert train(net, split, cache, threshold=0.5).threshold == net.threshold == 0.5


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, float("nan")])
def test_an_impossible_threshold_is_refused_before_training(split, cache, threshold, monkeypatch):
    steps = []
    on_step(lambda step, labels: steps.append(step), monkeypatch)
    with pytest.raises((TrainingError, ModelError), match="between 0 and 1"):
        train(tiny_net(), split, cache, threshold=threshold)
    assert steps == []


@pytest.mark.parametrize("name", ["training", "validation"])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [((), "none"), ((3,), "3 of 'red'"), ((1, 1, 1), "1 of 'red', 1 of 'green', 1 of 'blue'")],
)
def test_a_part_without_pairs_is_refused_before_any_work(split, name, sizes, said, monkeypatch):
    monkeypatch.setattr(training, "_frozen", lambda *_: pytest.fail("the work has begun"))
    part = split.train if name == "training" else split.val
    chosen = [i for c, n in enumerate(sizes) for i in np.flatnonzero(part.labels == c)[:n]]
    few = replace(split, **{"train" if name == "training" else "val": part.subset(chosen)})
    with pytest.raises(PairError, match=f"The {name} part of 'tiles' has too few images: {said}."):
        sc.fit(tiny_net(), few, recipe=FROZEN)


def test_in_a_log_each_epoch_has_one_line(split, cache, tmp_path, capsys):
    options = {"recipe": FROZEN, "cache": FeatureCache(cache), "folder": tmp_path / "run"}
    features = [
        "features of 24 training images, view 1 of 2",
        "features of 24 training images, view 2 of 2",
        "features of 12 validation images",
    ]
    done = sc.fit(tiny_net(), split, **options).history
    out, err = capsys.readouterr()
    assert err.split("\n") == [
        *features,
        "training",
        *(
            f"epoch {k} of 4: loss {e['train_loss']:.3f}, validation AUC {e['val_auc']:.3f}, "
            f"{e['seconds']:.1f} s"
            for k, e in enumerate(done, 1)
        ),
        "",
    ]
    sc.fit(tiny_net(), split, **options)  # it had finished
    again, err = capsys.readouterr()
    assert err.splitlines() == features
    sc.fit(tiny_net(), split, **options | {"folder": None}, progress=False)
    assert (out, again, *capsys.readouterr()) == ("", "", "", "")


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_where_somebody_watches_a_bar_moves(split, cache, capsys, monkeypatch, where):
    if where == "terminal":
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        assert not processes.step("to a file, the other stream would have bars")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    else:
        monkeypatch.setattr(processes, "tqdm", tqdm_notebook)
    sc.fit(tiny_net(), split, recipe=FROZEN, cache=FeatureCache(cache))
    said = "".join(capsys.readouterr())
    assert "epoch 1 of 4" not in said and "\rEpoch 0: " in said


def test_the_callers_random_numbers_are_left_alone(split, cache):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny_net(), split, cache)
    assert torch.equal(torch.rand(3), expected)


def test_early_stopping_stops(split, cache):
    recipe = replace(FROZEN, epochs=40, patience=2)
    fit = train(tiny_net(), split, cache, recipe=recipe)
    scores = [entry["val_auc"] for entry in fit.history]
    assert len(scores) < 40
    # Two epochs without a better one than all before, and never two such before the end.
    first_best = [k for k, s in enumerate(scores) if s > max(scores[:k], default=-1)]
    assert len(scores) == first_best[-1] + 1 + 2
    assert max(np.diff(first_best), default=1) <= 2


def test_no_two_epochs_learn_from_the_same_batches(split, cache, monkeypatch):
    seen = []
    on_step(lambda step, labels: seen.append(tuple(labels.tolist())), monkeypatch)
    train(tiny_net(), split, cache)
    assert len(seen) == FROZEN.epochs * FROZEN.steps
    epochs = [tuple(seen[k : k + FROZEN.steps]) for k in range(0, len(seen), FROZEN.steps)]
    assert len(set(epochs)) == len(epochs)


class Single(torch.Tensor):
    """A tensor on a device without float64, as Apple's is."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_no_device_is_asked_for_float64(split, cache, monkeypatch):
    net, known = tiny_net(), tiny_net()
    expected = train(known, split, cache).threshold
    monkeypatch.setattr(net, "dissimilarity", lambda d: known.dissimilarity(d).as_subclass(Single))
    assert train(net, split, cache).threshold == expected


@pytest.mark.slow
def test_finetuning_leaves_apples_gpu_alone(split, cache, monkeypatch):
    mps = "lightning.fabric.accelerators.mps.MPSAccelerator"
    monkeypatch.setattr(mps + ".is_available", lambda: True)
    net = tiny_net()
    train(net, split, cache, finetune=True)  # on "mps" it would raise, here as there
    assert net.device.type == "cpu"


# --- what is refused --------------------------------------------------------------------------


def test_an_unknown_loss_is_named_with_those_known(split, cache):
    with pytest.raises(TrainingError, match="'tripled'; known are paper, margin"):
        train(tiny_net(), split, cache, loss="tripled")


@pytest.mark.parametrize(
    ("loss", "normalize"), [("paper", True), ("margin", True), ("supervised_contrastive", False)]
)
def test_a_loss_for_other_embeddings_is_refused_and_nothing_changed(split, cache, loss, normalize):
    net = tiny_net(normalize=normalize)
    before = net.projection.weight.clone()
    with pytest.raises(TrainingError, match=f"normalize={not normalize}"):
        train(net, split, cache, loss=loss)
    assert torch.equal(net.projection.weight, before)


def test_a_split_that_leaks_is_refused(split, cache):
    leaking = sc.pairs.Split(split.train, split.val, split.train)
    with pytest.raises(PairError, match="training and test parts share 24 groups"):
        train(tiny_net(), leaking, cache)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("loss", ["margin_all_pairs", "supervised_contrastive"])
def test_an_absurd_learning_rate_is_told(split, cache, steps, loss):
    net = tiny_net(normalize=losses.OBJECTIVES[loss].unit_length)
    recipe = replace(FROZEN, learning_rate=1e38, steps=steps)
    with pytest.raises(TrainingError, match="learning rate"):
        train(net, split, cache, loss=loss, recipe=recipe)


@pytest.mark.parametrize("loss", losses.OBJECTIVES)
def test_embeddings_that_collapse_are_told(split, cache, loss):
    unit = losses.OBJECTIVES[loss].unit_length
    net = sc.SiameseNet(Same(), embed_dim=8, image_size=32, normalize=unit)
    with pytest.raises(TrainingError, match="collapsed"):
        train(net, split, cache, loss=loss, recipe=replace(FROZEN, epochs=1))


def test_a_failure_leaves_the_net_as_it_was(split, cache, monkeypatch):
    net = tiny_net()
    before = outcome(net, sc.Fit((), 0, 0.5, 0.0, "", False, 0))
    on_step(_raise_at(5, RuntimeError("power cut")), monkeypatch)
    with pytest.raises(RuntimeError, match="power cut"):
        train(net, split, cache)
    assert differences(outcome(net, sc.Fit((), 0, 0.5, 0.0, "", False, 0)), before) == []


# --- interrupted and resumed ------------------------------------------------------------------


def _raise_at(step: int, error: BaseException):
    def act(now, labels):
        if now == step:
            raise error

    return act


@MODES
@pytest.mark.parametrize("step", [0, 2, 3, 5, 8])
def test_resumed_after_an_exception_it_ends_the_same(
    split, cache, tmp_path, monkeypatch, undisturbed, finetune, step
):
    with monkeypatch.context() as patch:
        on_step(_raise_at(step, RuntimeError("power cut")), patch)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_net(), split, cache, finetune=finetune, folder=tmp_path)
    net = tiny_net()
    fit = train(net, split, cache, finetune=finetune, folder=tmp_path)
    assert fit.resumed_at == step // 3
    assert differences(outcome(net, fit), undisturbed(finetune)) == []


@pytest.mark.parametrize(
    ("finetune", "step"),
    [
        (False, 1),
        (False, 4),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(True, 4, marks=pytest.mark.slow),
    ],
)
def test_the_interrupted_net_itself_can_be_trained_on(
    split, cache, tmp_path, monkeypatch, undisturbed, finetune, step
):
    """In a notebook it is the same object that is passed again."""
    net = tiny_net()
    with monkeypatch.context() as patch:
        on_step(_raise_at(step, RuntimeError("power cut")), patch)
        with pytest.raises(RuntimeError, match="power cut"):
            train(net, split, cache, finetune=finetune, folder=tmp_path)
    fit = train(net, split, cache, finetune=finetune, folder=tmp_path)
    assert differences(outcome(net, fit), undisturbed(finetune)) == []


@pytest.mark.parametrize("step", [1, 7])
def test_ctrl_c_reaches_the_caller_and_keeps_working(
    split, cache, tmp_path, monkeypatch, undisturbed, step
):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        on_step(_raise_at(step, KeyboardInterrupt()), patch)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_net(), split, cache, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) == handler
    net = tiny_net()
    fit = train(net, split, cache, folder=tmp_path)
    assert fit.resumed_at == step // 3
    assert differences(outcome(net, fit), undisturbed(False)) == []


def test_interrupted_several_times(split, cache, tmp_path, monkeypatch, undisturbed):
    for step in (4, 0, 3):
        with monkeypatch.context() as patch:
            on_step(_raise_at(step, RuntimeError("power cut")), patch)
            with pytest.raises(RuntimeError, match="power cut"):
                train(tiny_net(), split, cache, folder=tmp_path)
    net = tiny_net()
    fit = train(net, split, cache, folder=tmp_path)
    assert differences(outcome(net, fit), undisturbed(False)) == []


MOMENTS = {  # fewer where each costs seconds
    False: (
        "step 0",
        "step 4",
        "step 7",
        "write 0",
        "write 1",
        "write 2",
        "replace 0",
        "replace 2",
    ),
    True: ("step 1", "step 5", "write 1", "replace 0"),
}


def die_at(moment: str) -> None:
    """Have this process killed: at a step, half-way through a write, or before a rename."""
    kind, number = moment.split()
    left = int(number)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if kind == "step":
        on_step(lambda step, labels: die() if step == left else None)
        return
    save, swap, count = torch.save, os.replace, iter(range(10**9))

    def half(value, path, *args, **options):
        save(value, path, *args, **options)
        if next(count) == left:
            with open(path, "rb+") as file:
                file.truncate(Path(path).stat().st_size // 2)
            die()

    def stop(source, target, *args, **options):
        if str(target).endswith("last.ckpt") and next(count) == left:
            die()
        swap(source, target, *args, **options)

    if kind == "write":
        torch.save = half
    else:
        os.replace = stop


def be_killed(root: Path, finetune: bool) -> None:
    """In a process of its own: for each moment, a child that trains until it is killed."""
    torch.set_num_threads(1)  # a child has no threads but its own
    train(tiny_net(), parts(), root / "f.sqlite", finetune=finetune)  # all that is loaded late
    ended = {}
    for moment in MOMENTS[finetune]:
        child = os.fork()
        if child == 0:
            die_at(moment)
            train(tiny_net(), parts(), root / "f.sqlite", finetune=finetune, folder=root / moment)
            os._exit(0)
        ended[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (root / "ended.json").write_text(json.dumps(ended))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("finetune", [False, True])
def test_killed_at_any_moment_and_resumed_it_ends_the_same(
    split, cache, tmp_path, undisturbed, finetune
):
    command = [sys.executable, __file__, str(tmp_path), str(int(finetune))]
    with open(tmp_path / "said.txt", "w") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, timeout=500)
    assert done.returncode == 0, (tmp_path / "said.txt").read_text()[-2000:]
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert ended == dict.fromkeys(MOMENTS[finetune], -signal.SIGKILL)
    for moment in MOMENTS[finetune]:
        net = tiny_net()
        fit = train(net, split, cache, finetune=finetune, folder=tmp_path / moment)
        kept = {"step": int(moment[-1]) // 3}.get(moment.split()[0], int(moment[-1]))
        assert fit.resumed_at == kept, moment
        assert differences(outcome(net, fit), undisturbed(finetune)) == [], moment


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_disk_that_is_full_for_the_second_checkpoint_leaves_the_first(
    split, cache, tmp_path, monkeypatch, undisturbed, share
):
    limits, first = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(step, labels):
        if step == 3:  # the second epoch begins
            first.append((tmp_path / "last.ckpt").read_bytes())
            full = int(share * len(first[0])), limits[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, full)

    with monkeypatch.context() as patch:
        on_step(fill, patch)
        try:
            with pytest.raises(TrainingError, match=r"last.ckpt cannot be written .* Make room"):
                train(tiny_net(), split, cache, folder=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.ckpt").read_bytes() == first[0]
    net = tiny_net()
    fit = train(net, split, cache, folder=tmp_path)
    assert fit.resumed_at == 1
    assert differences(outcome(net, fit), undisturbed(False)) == []


def test_what_a_killed_write_left_behind_is_cleared_away(split, cache, tmp_path):
    left = [".last.ckpt.abc.part", ".training.json.abc.part"]
    others = [".somebody's.part", "last.ckpt.part"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    now = tmp_path / ".last.ckpt.xyz.part"  # another process may be at it
    now.write_bytes(b"half")
    train(tiny_net(), split, cache, folder=tmp_path)
    stays = {"last.ckpt", "training.json", now.name, *others}
    assert {path.name for path in tmp_path.iterdir()} == stays


def test_a_checkpoint_of_a_gpu_is_taken_up_on_a_machine_without(
    split, cache, tmp_path, monkeypatch, undisturbed
):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")  # as a GPU writes it
        on_step(_raise_at(5, RuntimeError("power cut")), patch)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_net(), split, cache, folder=tmp_path)
    net = tiny_net()
    fit = train(net, split, cache, folder=tmp_path)
    assert fit.resumed_at == 1
    assert differences(outcome(net, fit), undisturbed(False)) == []


def _task(resumed_at: int, others: int) -> SimpleNamespace:
    """What `_Task.on_fit_start` looks at, in one of two processes."""
    ours = SimpleNamespace(count=2, total=lambda number, device: number + others)
    device, state = torch.device("meta"), {"weight": torch.ones(2)}
    return SimpleNamespace(history=[{}] * resumed_at, ours=ours, device=device, best_state=state)


def test_the_best_weights_go_where_the_network_trains():
    training._Task.on_fit_start(task := _task(3, 3))
    assert task.best_state["weight"].is_meta


@pytest.mark.parametrize(("here", "there"), [(3, 0), (0, 3), (2, 3)])
def test_processes_that_see_other_folders_do_not_train(here, there):
    with pytest.raises(TrainingError, match=f"this one at {here}; .* that all machines share"):
        training._Task.on_fit_start(_task(here, there))


def test_of_several_processes_the_first_alone_draws_bars(split, cache, monkeypatch):
    drawn = []

    def frozen(net, split, recipe, views, cache, progress):
        drawn.append(progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_frozen", frozen)
    for rank in range(2):
        monkeypatch.setattr(training, "processes", lambda rank=rank: Processes(2, rank, 2, None))
        with pytest.raises(KeyboardInterrupt):
            sc.fit(tiny_net(), split, recipe=FROZEN)
    assert drawn == [True, False]


# --- the folder -------------------------------------------------------------------------------


@MODES
def test_a_finished_folder_is_not_trained_again(
    split, cache, tmp_path, monkeypatch, undisturbed, finetune
):
    train(tiny_net(), split, cache, finetune=finetune, folder=tmp_path)
    steps = []
    on_step(lambda step, labels: steps.append(step), monkeypatch)
    net = tiny_net()
    fit = train(net, split, cache, finetune=finetune, folder=tmp_path)
    assert steps == [] and fit.resumed_at == len(fit.history)
    assert differences(outcome(net, fit), undisturbed(finetune)) == []


def test_a_training_that_stopped_early_is_finished(split, cache, tmp_path, monkeypatch):
    recipe = replace(FROZEN, epochs=40, patience=2)
    first, again = tiny_net(), tiny_net()
    expected = outcome(first, train(first, split, cache, recipe=recipe, folder=tmp_path))
    steps = []
    on_step(lambda step, labels: steps.append(step), monkeypatch)
    fit = train(again, split, cache, recipe=recipe, folder=tmp_path)
    assert steps == []
    assert differences(outcome(again, fit), expected) == []


@pytest.mark.parametrize(("dropout", "left"), [(0.5, 128), (0.3, 179), (0.999, 1), (0.001, 256)])
def test_dropout_leaves_its_share_of_values_and_their_mean(dropout, left):
    torch.manual_seed(0)
    values = training._dropped(torch.ones(301, 997), dropout)
    kept, share = values > 0, left / 256
    torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / share))
    spread = np.sqrt(share * (1 - share))
    assert abs(kept.float().mean().item() - share) <= 5 * spread / np.sqrt(kept.numel())
    for line in (kept.float().mean(dim=0), kept.float().mean(dim=1)):  # every row, every column
        assert (line - share).abs().max() <= 6 * spread / np.sqrt(301)
    torch.manual_seed(0)
    assert torch.equal(training._dropped(torch.ones(301, 997), dropout), values)
    assert torch.equal(training._dropped(torch.ones(301, 997), dropout), values) == (left == 256)


def test_the_folder_holds_only_this_training(split, cache, tmp_path):
    train(tiny_net(), split, cache, folder=tmp_path / "new" / "place")
    names = sorted(p.name for p in (tmp_path / "new" / "place").iterdir())
    assert names == ["last.ckpt", "training.json"]


KNOWN = losses.OBJECTIVES["supervised_contrastive"]


def of_temperature(temperature):
    def loss(net, e, labels, progress):
        return SupConLoss(temperature=temperature)(e, labels)

    return replace(KNOWN, loss=loss)


OTHERS = {
    "seed": {"seed": 1},
    "recipe": {"recipe": replace(FROZEN, dropout=0.1)},
    "network": {"net": lambda: sc.SiameseNet(Tiny(), embed_dim=4, image_size=32)},
    "loss, network": {"net": lambda: tiny_net(normalize=False)},
    "training images, validation images": {"split": parts(12)},
    "backbone's weights": {"net": lambda: tiny_net(start=1)},
    "loss": {"loss": of_temperature(0.1)},
    "augmentation": {"augmentation": default_augmentation(96)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_folder_of_another_training_is_refused(split, cache, tmp_path, what):
    train(tiny_net(), split, cache, folder=tmp_path)
    kept = (tmp_path / "last.ckpt").read_bytes()
    options = {"split": split, "net": tiny_net} | OTHERS[what]
    net = options.pop("net")()
    with pytest.raises(TrainingError, match=rf"holds another training \(other {what};"):
        train(net, options.pop("split"), cache, folder=tmp_path, **options)
    assert (tmp_path / "last.ckpt").read_bytes() == kept


def test_the_same_loss_of_ones_own_is_taken_up(split, cache, tmp_path):
    train(tiny_net(), split, cache, folder=tmp_path, loss=of_temperature(0.1))
    fit = train(tiny_net(), split, cache, folder=tmp_path, loss=of_temperature(0.1))
    assert fit.resumed_at == FROZEN.epochs
    with pytest.raises(TrainingError, match="other loss;"):
        train(tiny_net(), split, cache, folder=tmp_path, loss=of_temperature(0.2))


def test_the_default_augmentation_is_the_same_when_it_is_given(split, cache, tmp_path):
    train(tiny_net(), split, cache, folder=tmp_path)
    own = default_augmentation(FROZEN.crop_size)
    fit = train(tiny_net(), split, cache, folder=tmp_path, augmentation=own)
    assert fit.resumed_at == FROZEN.epochs


@pytest.mark.slow
def test_a_finetuning_is_not_taken_up_with_another_augmentation(split, cache, tmp_path):
    def crops(size):
        return {"finetune": True, "augmentation": default_augmentation(size), "folder": tmp_path}

    train(tiny_net(), split, cache, **crops(24))
    assert train(tiny_net(), split, cache, **crops(24)).resumed_at == FINETUNE.epochs
    with pytest.raises(TrainingError, match="other augmentation;"):
        train(tiny_net(), split, cache, **crops(16))


class Blur:
    """An augmentation written as a class."""

    def __init__(self, width, then=None):
        self.width, self.then = width, then

    def __call__(self, picture):
        return picture


@dataclass(frozen=True)
class Chosen:
    width: float
    seen: list = field(default_factory=list, compare=False)


def bound(value):
    def act(picture, by=2):
        return picture * value * by

    return act


def twice(picture):
    return bound(2)


class Level(Enum):
    LOW = 1
    HIGH = 2


def ring(width):
    one = Blur(width)
    one.then = Blur(width, then=one)
    return one


# Of each row the settings differ from one another; each is made anew by calling it.
SETTINGS = {
    "numbers": [lambda: 1, lambda: 1.5, lambda: True, lambda: None, lambda: "1", lambda: [1]],
    "enumerations": [lambda: Level.LOW, lambda: Level.HIGH],
    "transforms": [lambda: v2.RandomHorizontalFlip(0.5), lambda: v2.RandomHorizontalFlip(0.2),
                   lambda: v2.RandomVerticalFlip(0.5)],
    "what repr leaves out": [lambda: v2.ToDtype(torch.float32), lambda: v2.ToDtype(torch.uint8)],
    "composed": [lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]),
                 lambda: v2.Compose([v2.ToDtype(torch.float32), v2.ToImage()]),
                 lambda: default_augmentation(24), lambda: default_augmentation(25)],
    "partials": [lambda: partial(losses.contrastive, margin=1), lambda: losses.contrastive,
                 lambda: partial(losses.contrastive, margin=2), lambda: partial(twice, 1)],
    "closures": [lambda: bound(1), lambda: bound(2), lambda: bound([2]), lambda: twice],
    "lambdas": [lambda: v2.Lambda(lambda x: x + 1), lambda: v2.Lambda(lambda x: x + 2),
                lambda: v2.Lambda(lambda x, by=2: x + 1)],
    "arrays": [lambda: np.arange(3), lambda: np.arange(3.0), lambda: np.arange(4)[:0],
               lambda: torch.arange(3), lambda: torch.ones(3, dtype=torch.bfloat16),
               lambda: torch.tensor(1.0), lambda: torch.ones(1), lambda: np.array([None, 1])],
    "sets": [lambda: {"b", "a", "c"}, lambda: {"a", "c"}, lambda: {1: 2, "a": 3}, lambda: {1: 2}],
    "objects": [lambda: Blur(1), lambda: Blur(2), lambda: Blur(1, then=Blur(1)), lambda: ring(1),
                lambda: Chosen(1), lambda: Chosen(2), lambda: Path("a"), lambda: Path("b"),
                lambda: Blur, lambda: Chosen, lambda: np, lambda: Blur(1).__call__],
    "weights": [lambda: Tiny(0), lambda: Tiny(1), lambda: Tiny(0).layers],
    "losses": [lambda: SupConLoss(0.1), lambda: SupConLoss(0.2),
               lambda: losses.OBJECTIVES["paper"], lambda: losses.OBJECTIVES["margin"]],
}  # fmt: skip


def told(setting) -> str:
    return json.dumps(identity(setting), sort_keys=True)


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_are_told_apart_and_told_again(kind):
    settings = SETTINGS[kind]
    assert [told(make()) for make in settings] == [told(make()) for make in settings]
    assert len({told(make()) for make in settings}) == len(settings)


@pytest.mark.slow
def test_settings_are_the_same_in_another_process():
    """Neither an address nor the seed of Python's hashes is in what is written down."""
    told_here = [told(make()) for row in SETTINGS.values() for make in row]
    script = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location({__name__!r}, {__file__!r})\n"
        f"module = sys.modules[{__name__!r}] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "rows = module.SETTINGS.values()\n"
        "print(json.dumps([module.told(make()) for row in rows for make in row]))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told_here
    assert " at 0x" not in "".join(told_here)


def test_what_a_function_did_before_does_not_matter():
    """Python rewrites the code of a function that runs often."""
    act = bound(3)
    before = told(act)
    for k in range(10_000):
        act(k)
    assert told(act) == before


def test_what_says_nothing_of_itself_is_told_by_its_class():
    first, other = np.random.default_rng(1), np.random.default_rng(2)
    assert told(first) == told(other) == '{"numpy.random._generator.Generator": {}}'


def test_a_folder_that_cannot_be_written_is_told(split, cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        train(tiny_net(), split, cache, folder=tmp_path / "file" / "folder")


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "text", "other"])
def test_a_damaged_checkpoint_is_told(split, cache, tmp_path, damage):
    train(tiny_net(), split, cache, folder=tmp_path)
    file = tmp_path / "last.ckpt"
    whole = file.read_bytes()
    if damage == "other":
        torch.save({"epoch": 3, "state_dict": {}}, file)
    else:
        half = whole[: len(whole) // 2]
        written = {"empty": b"", "half": half, "noise": bytes(1000), "text": b"no"}
        file.write_bytes(written[damage])
    with pytest.raises(TrainingError, match="last.ckpt is damaged"):
        train(tiny_net(), split, cache, folder=tmp_path)


@pytest.mark.parametrize("sheet", [b"", b"\xff\xfe", b"{}"])
def test_a_damaged_sheet_is_told(split, cache, tmp_path, sheet):
    train(tiny_net(), split, cache, folder=tmp_path)
    (tmp_path / "training.json").write_bytes(sheet)
    with pytest.raises(TrainingError, match="holds another training"):
        train(tiny_net(), split, cache, folder=tmp_path)


class Evil:
    """Unpickled, it makes a file; a checkpoint could as well run anything else."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("as_torch", [True, False])
def test_a_checkpoint_cannot_run_code(split, cache, tmp_path, as_torch):
    train(tiny_net(), split, cache, folder=tmp_path / "training")
    file, target = tmp_path / "training" / "last.ckpt", tmp_path / "ran"
    if as_torch:
        kept = torch.load(file, weights_only=True)
        torch.save(kept | {"extra": Evil(target)}, file)
    else:
        file.write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(TrainingError, match="damaged"):
        train(tiny_net(), split, cache, folder=tmp_path / "training")
    assert not target.exists()


# --- augmentation -----------------------------------------------------------------------------


def test_an_augmentation_of_ones_own_is_used(split, cache, monkeypatch):
    used = []

    def plain(picture):
        used.append(picture.size)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    monkeypatch.setattr(training._Task, "train_dataloader", _in_this_process)
    recipe = replace(FINETUNE, epochs=1)
    train(tiny_net(), split, cache, finetune=True, augmentation=plain, recipe=recipe)
    assert used == [(32, 32)] * 24


def _in_this_process(task):
    return torch.utils.data.DataLoader(task.train_data, sampler=task.batches(0), batch_size=None)


if __name__ == "__main__":  # the process that is killed, see be_killed
    be_killed(Path(sys.argv[1]), bool(int(sys.argv[2])))
