"""`fit`: train a Siamese network on one split and calibrate its decision.

Taught in chapters 3 (contrastive loss) and in the case studies. Lightning runs the loop; what is
ours is which numbers go in: cached features of a frozen backbone, or augmented pictures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from scipy.spatial.distance import squareform
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from siamcam_lib.allocator import memory_kept
from siamcam_lib.augmentation import AugmentedImages, Batches, default_augmentation
from siamcam_lib.backbones import evaluating
from siamcam_lib.cache import FeatureCache
from siamcam_lib.calibration import best_threshold, fit_sigmoid, require_spread
from siamcam_lib.errors import TrainingError
from siamcam_lib.features import VIEWS, View, backbone_digest, looks_pooled, pooled_features
from siamcam_lib.files import clear_halves, whole_file
from siamcam_lib.identity import identity
from siamcam_lib.losses import Objective, objective
from siamcam_lib.model import SiameseNet
from siamcam_lib.pairs import Split, all_pairs, check_split
from siamcam_lib.pairs.splitting import check_pairable
from siamcam_lib.processes import Processes, processes, step, training_quietly


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train.

    Attributes:
        epochs: Passes; in frozen mode an epoch is `steps` batches.
        batch_size: Images in a batch, of each process.
        learning_rate: Highest rate of projection and output; one cycle of AdamW.
        backbone_rate: The same for the backbone, where it is trained.
        steps: Batches an epoch; None for one pass over the images.
        patience: Epochs without a better validation AUC after which training stops early and the
            best epoch's weights are kept. None trains to the end of the one-cycle schedule and
            keeps the last weights: there the rate has come down, and choosing the best of many
            epochs on a small validation part picks by luck.
        dropout: Share of pooled features set to zero in training (frozen mode).
        crop_size: Side of the training crops in pixels (fine-tuning mode).

    Raises:
        TrainingError: if a number is none that training can use.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 2e-3
    backbone_rate: float = 3e-4
    weight_decay: float = 1e-2
    steps: int | None = None
    patience: int | None = None
    dropout: float = 0.5
    crop_size: int = 192

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 2, "steps": 1, "patience": 1, "crop_size": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "patience"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise TrainingError(f"{name} is a whole number from {least} on, not {value!r}.")
            object.__setattr__(self, name, int(value))  # NumPy's own cannot be recorded
        for name in ("learning_rate", "backbone_rate", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.floating) or not 0 <= value < math.inf:
                raise TrainingError(f"{name} is a number from 0 on, not {value!r}.")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.dropout, int | float | np.floating) or not 0 <= self.dropout < 1:
            raise TrainingError(
                f"dropout is a share, at least 0 and below 1, not {self.dropout!r}."
            )
        object.__setattr__(self, "dropout", float(self.dropout))


# The default loss needs half of it (validation AUC over three sets and five seeds: .893 and .890);
# others need it all: flowers, three seeds, .894 and .928 by the paper's, .939 and .947 by margin.
FROZEN = Recipe(epochs=10, batch_size=256, steps=30)
FINETUNE = Recipe(epochs=8, batch_size=64)


@dataclass(frozen=True)
class Fit:
    """What training did.

    Attributes:
        history: One dictionary an epoch: ``epoch``, ``train_loss``, ``val_auc``, ``seconds``.
        best_epoch: The epoch whose weights the network has now.
        threshold: Dissimilarity from which a pair is judged dissimilar.
        seconds: Wall-clock time of this call, features included.
        resumed_at: Epoch at which an earlier, interrupted call was taken up; 0 for none.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    threshold: float
    seconds: float
    loss: str
    finetune: bool
    seed: int
    resumed_at: int = 0


def fit(
    net: SiameseNet,
    split: Split,
    seed: int = 0,
    *,
    loss: str | Objective | None = None,
    finetune: bool = False,
    recipe: Recipe | None = None,
    threshold: float | None = None,
    augmentation: v2.Transform | None = None,
    views: Sequence[str | View] = VIEWS,
    folder: str | Path | None = None,
    cache: FeatureCache | None = None,
    progress: bool = True,
) -> Fit:
    """Train `net` in place on ``split.train``, choose by ``split.val``; never touch ``split.test``.

    Frozen mode (the default) trains projection and output on cached features of the pictures and
    of their mirror images, or of other `views`: seconds on two cores. A network of several looks
    learns from each of them, and is judged by their mean. Fine-tuning trains everything on
    augmented pictures, looked at once. Either way the last weights are kept or, with
    `Recipe.patience`, those of the epoch with the best validation AUC; then the sigmoid is fitted
    to validation distances (`fit_sigmoid`) and the threshold is chosen on validation pairs
    (`best_threshold`).

    Of several processes, which `torchrun` or `srun` started with the same command, each trains on
    its own share of every epoch's batches, and a step follows the mean of their gradients (Li et
    al. 2020, doi:10.14778/3415478.3415530): p processes take p times fewer steps, each on p
    batches. Pictures are contrasted within the batch of a process, never across. Batch
    normalisation follows each process's batch while training; its running means are those of the
    first. All end with the same weights, the first process keeps the checkpoints, and another
    number of processes gives another network.

    Args:
        net: Changed in place and left in evaluation mode.
        split: From `sc.pairs.split`.
        seed: Fixes the projection's start, the batches, the augmentation and the dropout.
        loss: A name in `siamcam_lib.losses.OBJECTIVES`, or an `Objective`; by default
            ``"supervised_contrastive"`` where embeddings have unit length and
            ``"margin_all_pairs"`` where they do not.
        finetune: Train the backbone too.
        recipe: By default `FROZEN` or `FINETUNE`.
        threshold: Use this one instead of choosing it (the paper's 0.5, say).
        augmentation: PIL image → float tensor in [0, 1]; by default `default_augmentation`
            (fine-tuning).
        views: Which views of the training pictures are learned from (frozen mode); each time a
            picture comes up, one of them is drawn.
        folder: Where to keep checkpoints. A second call with the same arguments takes up an
            interrupted training there and ends with the same weights; one with other data, seed,
            network, recipe, loss or augmentation is refused. A loss or augmentation of your own
            is told by the code of its function, the values bound to it, and the attributes of its
            objects. What it looks up elsewhere (a global variable, a function it calls, the
            methods of a class) is not compared: change that, and choose another folder.
        cache: Feature cache of the frozen mode; by default the user's.
        progress: Show progress: bars at a terminal and in a notebook, elsewhere a line for each
            epoch on stderr.

    Raises:
        TrainingError: if the loss is unknown or does not fit the network, the folder holds
            another training, cannot be written or is not the same for all processes, an epoch has
            fewer batches than there are processes, or the embeddings collapse or become NaN.
        PairError: if the parts of the split share images, or the training or the validation part
            has no similar pair or no dissimilar one.

    Example:
        >>> import siamcam_lib as sc
        >>> parts = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        >>> net = sc.SiameseNet("efficientnet_lite0", embed_dim=32, image_size=96)
        >>> result = fit(net, parts, seed=0, recipe=Recipe(2, 32, steps=2), progress=False)
        >>> 0 < result.threshold < 1
        True
    """
    start = time.perf_counter()
    goal = objective(loss or ("supervised_contrastive" if net.normalize else "margin_all_pairs"))
    if goal.unit_length != net.normalize:
        need = "unit-length" if goal.unit_length else "plain"
        raise TrainingError(
            f"The loss {goal.name!r} is meant for {need} embeddings; build the network with "
            f"SiameseNet(..., normalize={goal.unit_length})."
        )
    if threshold is not None and not 0 < threshold < 1:
        raise TrainingError(f"A threshold lies strictly between 0 and 1, not at {threshold!r}.")
    check_split(split)
    for name, part in (("training", split.train), ("validation", split.val)):
        check_pairable(name, part)
    if not views:
        raise TrainingError("views is empty; give at least one view of the training pictures.")
    recipe = recipe or (FINETUNE if finetune else FROZEN)
    ours = processes()
    progress = progress and ours.first
    augmentation = augmentation or default_augmentation(recipe.crop_size)
    record = {} if folder is None else {
        "seed": int(seed), "loss": identity(goal), "augmentation": identity(augmentation),
        "views": [str(view) for view in views],
        "finetune": finetune, "recipe": recipe.__dict__, "processes": ours.count,
        "network": net.config, "backbone's weights": backbone_digest(net),
        "training images": split.train.fingerprint(),
        "validation images": split.val.fingerprint(),
    }  # fmt: skip
    with _as_it_was_on_failure(net), torch.random.fork_rng(devices=[]):
        _restart_head(net, seed)
        net.train().requires_grad_(True)
        net.backbone.requires_grad_(finetune)
        train, val, embed = (
            _finetuning(net, split, augmentation)
            if finetune
            else _frozen(net, split, recipe, views, cache, progress)
        )
        task = _Task(net, goal, recipe, split, train, val, embed, finetune, seed, ours)
        device = net.device
        resumed_at = _run(task, record, folder, progress)
        net.to(device)  # the trainer may have moved what it trained
        net.load_state_dict(task.best_state, strict=False)
        net.requires_grad_(False).eval()
        distances, label, weight = task.validation_distances()
        require_spread(distances)
        if goal.calibrated:
            fitted = fit_sigmoid(distances, label, weight)
            net.output.weight.fill_(fitted.slope)
            net.output.bias.fill_(fitted.offset)
        with torch.inference_mode():
            judged = net.dissimilarity(torch.from_numpy(distances).float().to(net.device))
        score = judged.cpu().double().numpy()  # not every device has float64
        net.threshold = threshold or best_threshold(score, label, weight)
    return Fit(
        tuple(task.history), task.best_epoch, net.threshold, time.perf_counter() - start,
        goal.name, finetune, seed, resumed_at,
    )  # fmt: skip


@contextmanager
def _as_it_was_on_failure(net: SiameseNet) -> Iterator[None]:
    """Whatever goes wrong inside, the network keeps the weights and settings it came with."""
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [(module, module.training) for module in net.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    device = net.device
    try:
        yield
    except BaseException:
        net.to(device)  # the trainer may have moved what it trained
        net.load_state_dict(state)
        for module, mode in modes:
            module.training = mode
        for parameter, requires in wanted:
            parameter.requires_grad_(requires)
        raise


def _restart_head(net: SiameseNet, seed: int) -> None:
    """Draw projection and output afresh, so that a fit depends on its seed alone."""
    torch.manual_seed(seed)
    net.projection.reset_parameters()
    torch.nn.init.ones_(net.output.weight)
    torch.nn.init.zeros_(net.output.bias)


class _PooledViews(Dataset):
    """Cached features of several views; the draw chooses the view."""

    def __init__(self, views: Tensor, labels: np.ndarray) -> None:
        self.views, self.labels = views, labels  # (V, n, K), (n,)

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        positions, draws = np.array(batch).T
        return self.views[draws % len(self.views), positions], torch.from_numpy(
            self.labels[positions]
        )


def _frozen(net, split, recipe, views, cache, progress):
    """Training data, validation input and embedding function of the frozen mode."""
    seen = []  # each look is a view of its own to learn from; what is judged by is their mean
    for turn, view in enumerate(views, 1):
        what = f"features of {len(split.train)} training images, view {turn} of {len(views)}"
        bar = step(what, progress)
        seen.append(looks_pooled(net, split.train, view=view, cache=cache, progress=bar))
    seen = torch.cat(seen, dim=1).transpose(0, 1).contiguous()  # (V·L, n, K)
    bar = step(f"features of {len(split.val)} validation images", progress)
    val = pooled_features(net, split.val, cache=cache, progress=bar)

    def embed(pooled: Tensor) -> Tensor:
        if torch.is_grad_enabled() and recipe.dropout:
            pooled = _dropped(pooled, recipe.dropout)
        return net.embed_pooled(pooled)

    return _PooledViews(seen, split.train.labels), val, embed


def _dropped(values: Tensor, dropout: float) -> Tensor:
    """Dropout: each value is set to zero by lot, the others grow by as much as keeps the mean.

    The share set to zero is `dropout` to a 256th, and below 1: one byte decides on each value, and
    eight bytes are drawn at once.
    """
    count, limit = values.numel(), min(255, round(256 * dropout))
    drawn = torch.empty(-(-count // 8), dtype=torch.int64, device=values.device)
    octets = drawn.random_(-(2**63), None).view(torch.uint8)[:count].view(values.shape)
    return values * (octets >= limit).to(values) * (256 / (256 - limit))


def _finetuning(net, split, augmentation):
    """The same of the fine-tuning mode: pictures instead of features."""
    pictures = [split.val.image(i) for i in range(len(split.val))]
    val = net.to_tensor(pictures)
    return AugmentedImages(split.train, augmentation), val, net.embed


class _Share(Sampler):
    """The batches of one process: every p-th, as many as every other process has.

    Raises:
        TrainingError: if there are fewer batches than processes.
    """

    def __init__(self, batches: Batches, ours: Processes) -> None:
        self.batches, self.ours = batches, ours
        if len(batches) < ours.count:
            raise TrainingError(
                f"An epoch has {len(batches)} batches, fewer than there are processes "
                f"({ours.count}); take fewer processes, smaller batches (Recipe.batch_size) or "
                "more steps (Recipe.steps)."
            )

    def __len__(self) -> int:
        return len(self.batches) // self.ours.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        end = len(self) * self.ours.count
        return islice(self.batches, self.ours.rank, end, self.ours.count)


class _Task(L.LightningModule):
    """One training: what a step is, and what a validation is."""

    def __init__(
        self, net, goal: Objective, recipe: Recipe, split: Split, train, val, embed, finetune, seed,
        ours: Processes,
    ):  # fmt: skip
        super().__init__()
        self.ours = ours
        self.goal, self.recipe, self.embed, self.seed = goal, recipe, embed, seed
        self.train_data, self.val_data, self.finetune = train, val, finetune
        self.labels = split.train.labels
        self.history: list[dict[str, float]] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch, self.best_auc = -1, -math.inf
        self.trained = net if finetune else torch.nn.ModuleDict(
            {"projection": net.projection, "output": net.output}
        )  # fmt: skip
        self._net = [net]  # in a list, so that a frozen backbone is not checkpointed
        self.pairs, self.weight = all_pairs(split.val, ordered=False)
        self._losses: list[float] = []
        self._clock = time.perf_counter()

    def batches(self, epoch: int) -> Batches:
        return Batches(
            self.labels, self.recipe.batch_size, steps=self.recipe.steps,
            given_pairs=self.goal.given_pairs, seed=self.seed, epoch=epoch,
        )  # fmt: skip

    def train_dataloader(self):
        # Asked for anew each epoch: the epoch's batches follow from the step alone, so that a
        # resumed training sees those it would have seen.
        batches = _Share(self.batches(0), self.ours)
        batches = _Share(self.batches(self.global_step // len(batches)), self.ours)
        workers = 2 if self.finetune else 0
        return DataLoader(self.train_data, sampler=batches, batch_size=None, num_workers=workers)

    def val_dataloader(self):
        return DataLoader([0])  # the whole validation part is judged at once, at the epoch's end

    def configure_optimizers(self):
        backbone = {id(p) for p in self._net[0].backbone.parameters()}
        head = [p for p in self.trained.parameters() if id(p) not in backbone]
        groups, rates = [{"params": head}], [self.recipe.learning_rate]
        if len(head) < len(list(self.trained.parameters())):
            groups.append({"params": list(self._net[0].backbone.parameters())})
            rates.append(self.recipe.backbone_rate)
        optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, batch, batch_index):
        # Dropout and stochastic depth become a function of seed and step: resuming changes nothing.
        own = self.seed * 1_000_003 + self.global_step + (self.ours.rank << 48)
        # On a CPU its own generator alone: `torch.manual_seed` would also note for every graphics
        # card, with the whole call stack, what to do if one is used.
        (torch.default_generator if self.device.type == "cpu" else torch.random).manual_seed(own)

    def training_step(self, batch, batch_index):
        inputs, labels = batch
        progress = self.global_step / max(1, self.trainer.estimated_stepping_batches - 1)
        e = self.embed(inputs)
        with torch.autocast(self.device.type, enabled=False):  # the loss needs full precision
            value = self.goal.loss(self._net[0], e.float(), labels, min(progress, 1.0))
        if not torch.isfinite(value):
            raise TrainingError(
                f"The loss became {value.item()} at step {self.global_step}; lower the learning "
                "rate (Recipe.learning_rate, Recipe.backbone_rate)."
            )
        self._losses.append(value.item())
        return value

    def validation_step(self, batch, batch_index):
        return None

    def on_validation_epoch_end(self):
        self.ours.agree(self.trained.buffers())
        distances, label, weight = self.validation_distances()
        auc = float(roc_auc_score(label, distances, sample_weight=weight))
        now = time.perf_counter()
        entry = {
            "epoch": self.current_epoch, "train_loss": float(np.mean(self._losses)),
            "val_auc": auc, "seconds": now - self._clock,
        }  # fmt: skip
        self._clock, self._losses = now, []
        self.history.append(entry)
        # Of equals the later one, trained longer.
        if self.recipe.patience is None or auc >= self.best_auc:
            self.best_epoch, self.best_auc = self.current_epoch, auc
            state = self.trained.state_dict()
            self.best_state = {key: value.detach().clone() for key, value in state.items()}
        self.log_dict({"val_auc": auc, "train_loss": entry["train_loss"]}, prog_bar=True)

    def on_fit_start(self):
        resumed_at = len(self.history)
        if self.ours.total(resumed_at, self.device) != resumed_at * self.ours.count:
            raise TrainingError(
                f"The processes do not resume at the same epoch, this one at {resumed_at}; they "
                "see different folders of checkpoints. Give one that all machines share."
            )
        self.best_state = {k: v.to(self.device) for k, v in self.best_state.items()}

    def on_fit_end(self):
        self.ours.agree(self.best_state.values())

    def validation_distances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance, label and weight of every validation pair."""
        device = self._net[0].device
        with evaluating(self.trained), torch.inference_mode():
            parts = [self.embed(part.to(device)).float() for part in self.val_data.split(64)]
        e = torch.cat(parts).cpu()
        distances = squareform(torch.nn.functional.pdist(e).numpy())
        if not np.isfinite(distances).all():
            raise TrainingError(
                f"The embeddings are no longer finite at step {self.global_step}; lower the "
                "learning rate (Recipe.learning_rate, Recipe.backbone_rate)."
            )
        return distances[self.pairs.a, self.pairs.b].astype(float), self.pairs.label, self.weight

    def on_save_checkpoint(self, checkpoint):
        checkpoint["siamcam"] = {
            "history": self.history, "best_state": self.best_state,
            "best_epoch": self.best_epoch, "best_auc": self.best_auc,
            "finished": self.trainer.should_stop or len(self.history) >= self.recipe.epochs,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint):
        kept = checkpoint["siamcam"]
        self.history, self.best_state = list(kept["history"]), dict(kept["best_state"])
        self.best_epoch, self.best_auc = kept["best_epoch"], kept["best_auc"]


class _WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are never unpickled."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        try:
            with whole_file(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch says a full disk by the latter
            raise TrainingError(
                f"The checkpoint {path} cannot be written ({error}); the one before it is kept. "
                "Make room and call again: training goes on from there."
            ) from error

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        # Wherever it was written: Lightning and `_Task.on_fit_start` move what is to be moved.
        return torch.load(path, map_location="cpu", weights_only=True)


class _LineAnEpoch(L.Callback):
    """Progress in a log, which keeps every state of a bar."""

    def on_validation_end(self, trainer, task):
        e = task.history[-1]
        step(
            f"epoch {e['epoch'] + 1} of {trainer.max_epochs}: loss {e['train_loss']:.3f}, "
            f"validation AUC {e['val_auc']:.3f}, {e['seconds']:.1f} s"
        )


def _run(task: _Task, record: dict, folder: str | Path | None, progress: bool) -> int:
    """Train; return the epoch at which an interrupted training was taken up, or 0."""
    callbacks: list[L.Callback] = []
    if task.recipe.patience is not None:
        callbacks.append(EarlyStopping("val_auc", mode="max", patience=task.recipe.patience))
    resume, resumed_at, epochs = None, 0, task.recipe.epochs
    if folder is not None:
        folder = Path(folder)
        resume = _claim(folder, record, task.ours)
        # Whoever monitors nothing keeps the newest: one file, overwritten whole after each epoch.
        callbacks.append(ModelCheckpoint(folder, filename="last", enable_version_counter=False))
    if resume is not None:
        kept = _read_checkpoint(resume)
        resumed_at = len(kept["siamcam"]["history"])
        if kept["siamcam"]["finished"]:
            if task.ours.count == 1:
                task.on_load_checkpoint(kept)
                return resumed_at
            epochs = resumed_at  # several make sure that all have finished
    if bar := step("training", progress):
        callbacks.append(TQDMProgressBar(refresh_rate=5, leave=False))
    elif progress:
        callbacks.append(_LineAnEpoch())
    with training_quietly():
        # Apple's GPU has neither the threshold's float64 nor the losses' pdist.
        cuda = task.finetune and torch.cuda.is_available()
        trainer = task.ours.trainer(
            torch.device("cuda" if cuda else "cpu"),
            max_epochs=epochs,
            precision="bf16-mixed" if cuda else "32-true",  # a CPU's backward pass is slower in it
            callbacks=callbacks,
            plugins=[_WholeCheckpoints()],
            enable_checkpointing=folder is not None,
            enable_progress_bar=bar,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
        )
        with memory_kept() if task.finetune and not cuda else nullcontext(), task.ours.working():
            trainer.fit(task, ckpt_path=resume)
    return resumed_at


def _read_checkpoint(path: Path) -> dict:
    """A checkpoint of ours, as plain tensors and numbers; nothing in it is run."""
    try:
        kept = torch.load(path, weights_only=True, map_location="cpu")
        if {"history", "best_state", "finished"} <= set(kept["siamcam"]):
            return kept
        raise KeyError("siamcam")
    except Exception as error:  # torch.load raises whatever it stumbles over
        raise TrainingError(
            f"The checkpoint {path} is damaged or not of this library "
            f"({type(error).__name__}); delete the folder to train from the beginning."
        ) from error


def _claim(folder: Path, record: dict, ours: Processes) -> Path | None:
    """Make `folder` this training's own; return its last checkpoint, if it has one."""
    sheet, last = folder / "training.json", folder / "last.ckpt"
    text = json.dumps(record, indent=1, sort_keys=True)
    if sheet.exists() and sheet.read_bytes() != text.encode():
        raise TrainingError(
            f"{folder} holds another training ({_differences(sheet, text)}; see {sheet}); give a "
            "folder of its own to each, or delete it."
        )
    if not ours.first:
        return last if last.exists() else None
    try:
        for file in (sheet, last):
            clear_halves(file)
        with whole_file(sheet) as temporary:
            temporary.write_bytes(text.encode())
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written ({error}); choose another.") from error
    return last if last.exists() else None


def _differences(sheet: Path, text: str) -> str:
    """In which entries the record kept in `sheet` is not the one in `text`."""
    wanted = json.loads(text)
    try:
        kept = json.loads(sheet.read_bytes())
        return "other " + ", ".join(key for key in wanted if kept.get(key) != wanted[key])
    except (OSError, ValueError, AttributeError):
        return "its record is damaged"
