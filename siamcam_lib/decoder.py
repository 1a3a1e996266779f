"""`Decoder`: from an embedding back to a small picture, for explainers that look through it.

Taught in the chapter on the other explainers. An embedding keeps little of a picture; a decoder
shows how much of it can be told again, and which pixels move when an embedding is changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from siamcam_lib.datasets import ImageSet
from siamcam_lib.embedder import Explainable, SiameseEmbedder, as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.features import pooled_features
from siamcam_lib.files import shown, whole_file
from siamcam_lib.model import squares
from siamcam_lib.processes import training_quietly

SIDE = 40
"""Side in pixels of decoded pictures, as in Bello et al. (2024), section 4.1."""

HELD_OUT = 0.1  # share of the pictures that training does not see; it stops by them
AT_ONCE = 64  # pictures embedded together
FORMAT = "siamcam decoder 1"


class Decoder(nn.Module):
    """Embedding → picture, of one network; made by `train_decoder`.

    Embeddings are centred and scaled first. A feature that never varied in training says nothing
    about a picture, and the decoder is deaf to it.

    Args:
        embed_dim: E.
        hidden: Units of the hidden layer; 0 for none, as in Figure 3 of Bello et al. (2024):
            then the decoder is affine.
        network: `Explainable.digest` of the network whose embeddings it decodes.
        error: Mean squared error of a colour value in [0, 1] on pictures not trained on.
        mean_error: The same of one answer for all, the mean picture: what a decoder must beat.

    Attributes:
        centre: Mean embedding of the training pictures, (E,).
        spread: Standard deviation of each feature over them, (E,).

    Example:
        >>> Decoder(8, hidden=4)(torch.zeros(5, 8)).shape
        torch.Size([5, 3, 40, 40])
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        embed_dim: int,
        hidden: int = 256,
        *,
        network: str = "",
        error: float = float("nan"),
        mean_error: float = float("nan"),
    ) -> None:
        super().__init__()
        sizes = [embed_dim, hidden, 3 * SIDE**2] if hidden else [embed_dim, 3 * SIDE**2]
        layers: list[nn.Module] = [nn.Linear(*ends) for ends in zip(sizes, sizes[1:], strict=False)]
        for i in range(1, len(layers)):
            layers.insert(2 * i - 1, nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.register_buffer("centre", torch.zeros(embed_dim))
        self.register_buffer("spread", torch.ones(embed_dim))
        self.embed_dim, self.hidden, self.network = embed_dim, hidden, network
        self.error, self.mean_error = error, mean_error
        self.double()  # so that a picture's answer does not depend on its batch

    def __repr__(self) -> str:
        through = f"{self.hidden} → " if self.hidden else ""
        return (
            f"Decoder({self.embed_dim} → {through}{SIDE}×{SIDE}×3; squared error "
            f"{self.error:.4f}, of the mean picture {self.mean_error:.4f})"
        )

    def forward(self, e: Tensor) -> Tensor:
        """Pictures of embeddings, (m, E) → (m, 3, 40, 40); values mostly in [0, 1]."""
        # One scale for all features: a rare one would be blown up by its own.
        scale = (self.spread > 0) / self.spread.square().mean().sqrt().clamp(min=1e-12)
        return self.layers((e.to(scale) - self.centre) * scale).unflatten(1, (3, SIDE, SIDE))

    @torch.no_grad()
    def change(self, e: Tensor, changed: Tensor) -> Tensor:
        """How far each pixel moves with the embedding, summed over colours.

        Args:
            e: (m, E).
            changed: (m, E).

        Returns:
            |decoder(e) − decoder(changed)|, (m, 40, 40) float64.
        """
        return (self(e) - self(changed)).abs().sum(dim=1)

    def check(self, seeing: Explainable) -> None:
        """Raise `ExplanationError` unless this is the decoder of the network `seeing`."""
        check_network(self.network, seeing)

    def save(self, path: str | Path) -> None:
        """Write the decoder as one safetensors file, whole or not at all.

        Raises:
            ExplanationError: if the file cannot be written.
        """
        told = ("embed_dim", "hidden", "network", "error", "mean_error")
        config = json.dumps({name: getattr(self, name) for name in told})
        tensors = {k: v.float().contiguous() for k, v in self.state_dict().items()}
        try:
            with whole_file(path) as temporary:
                save_file(tensors, temporary, metadata={"format": FORMAT, "config": config})
        except (OSError, SafetensorError) as error:
            raise ExplanationError(f"{path} cannot be written ({error}).") from error

    @classmethod
    def load(cls, path: str | Path) -> Decoder:
        """Read a decoder written by `save`.

        Raises:
            ExplanationError: if the file is missing, damaged, or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if metadata["format"] != FORMAT:
                raise ValueError(metadata["format"])
            config = json.loads(metadata["config"])
            embed_dim, hidden = config.pop("embed_dim"), config.pop("hidden")
            shape = (hidden or 3 * SIDE**2, embed_dim)
            if tuple(tensors["layers.0.weight"].shape) != shape:
                raise ValueError(f"sizes {shape}")
            decoder = cls(embed_dim, hidden, **config)
            decoder.load_state_dict(tensors)
        except (OSError, SafetensorError, LookupError, TypeError, AttributeError, ValueError,
                RuntimeError) as error:  # fmt: skip
            raise ExplanationError(
                f"{path} is no file written by Decoder.save ({error}); train a decoder again."
            ) from error
        return decoder.eval().requires_grad_(False)


def check_network(learned: str, seeing: Explainable) -> None:
    """Refuse what was learned from the embeddings of another network.

    Args:
        learned: `Explainable.digest` of the network it was learned from.
        seeing: The network that is to be explained.

    Raises:
        ExplanationError: if they differ; training a network further changes it too.
    """
    if learned != seeing.digest():
        raise ExplanationError(
            "The explainer was fitted on another network, or on this one before its weights "
            "changed; fit it again: explainer.fit(net, split.train)."
        )


def as_compared(seeing: Explainable, e: Tensor) -> Tensor:
    """Embeddings as the network compares them: (n, E), at unit length where `seeing.unit`."""
    return nn.functional.normalize(e, dim=-1) if seeing.unit else e


def embeddings(net: Any, images: ImageSet, *, progress: bool = True) -> Tensor:
    """Embeddings of all pictures, as the network compares them; a `SiameseNet`'s from its cache.

    Args:
        net: As in `sc.explain`.
        images: n pictures.
        progress: Show progress.

    Returns:
        (n, E) float64, on the CPU.
    """
    seeing = as_explainable(net)
    if isinstance(seeing, SiameseEmbedder):
        pooled = pooled_features(seeing.net, images, progress=progress)
        with torch.inference_mode():
            e = seeing.net.activation(pooled.to(seeing.net.device)).double().cpu()
        return as_compared(seeing, e.clone())
    starts = tqdm(
        range(0, len(images), AT_ONCE),
        desc=f"embeddings of {shown(images.name)}",
        disable=not progress,
        leave=False,
    )
    rows = (range(start, min(start + AT_ONCE, len(images))) for start in starts)
    parts = [seeing.see([images.image(i) for i in some]).embedding for some in rows]
    return as_compared(seeing, torch.cat(parts))


def train_decoder(
    net: Any,
    images: ImageSet,
    *,
    hidden: int = 256,
    epochs: int = 200,
    patience: int = 10,
    seed: int = 0,
    progress: bool = True,
    embedded: Tensor | None = None,
) -> Decoder:
    """Learn to tell pictures from their embeddings: squared error, eq. (1) of Bello et al. (2024).

    A tenth of the pictures is held out; training stops when the error on it no longer falls, and
    the best epoch is kept. The paper's equation sums over pixels, its reported errors of .02 to
    .05 can only be means; `Decoder.error` is a mean. It is slightly too low, because the epoch
    was chosen by it.

    Args:
        net: The network, as in `sc.explain`; only its embeddings are used.
        images: At least ten training pictures.
        hidden: See `Decoder`.
        epochs: At most so many.
        patience: Epochs without a lower error after which training stops.
        seed: Of the first weights, the batches and the choice of what is held out.
        progress: Show progress bars.
        embedded: `embeddings` of the images, where they are known already.

    Raises:
        ExplanationError: if there are fewer than ten pictures or a setting is wrong.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=20)
        >>> net = sc.SiameseNet(image_size=64)
        >>> decoder = train_decoder(net, images, epochs=2, progress=False)
        >>> decoder(torch.zeros(1, 256)).shape
        torch.Size([1, 3, 40, 40])
    """
    if len(images) < 10:
        raise ExplanationError(f"A decoder needs at least ten pictures; {len(images)} were given.")
    for name, value, least in (("hidden", hidden, 0), ("epochs", epochs, 1)):
        if not isinstance(value, int) or value < least:
            raise ExplanationError(f"{name} is a whole number from {least} on, not {value!r}.")
    e = embeddings(net, images, progress=progress) if embedded is None else embedded
    shown = torch.cat([squares([images.image(i)], SIDE) for i in range(len(images))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        held, kept = torch.randperm(len(images)).split_with_sizes(_sizes(len(images)))
        decoder = Decoder(e.shape[1], hidden, network=as_explainable(net).digest())
        decoder.centre.copy_(e[kept].mean(dim=0))
        decoder.spread.copy_(_spread(e[kept]))
        mean = shown[kept].mean(dim=0)
        with torch.no_grad():  # training starts from the mean picture
            last = decoder.layers[-1]
            assert isinstance(last, nn.Linear)
            last.weight.zero_()
            last.bias.copy_(mean.flatten())
        task = _Task(decoder.float(), (e.float(), shown), kept, held)
        with training_quietly():
            _trainer(epochs, patience, progress).fit(task)
    decoder.load_state_dict(task.best)
    decoder.error = task.least
    decoder.mean_error = float((shown[held] - mean).square().mean())
    return decoder.cpu().double().eval().requires_grad_(False)


def _sizes(n: int) -> list[int]:
    held = max(1, round(n * HELD_OUT))
    return [held, n - held]


def _spread(e: Tensor) -> Tensor:
    """Standard deviation of each feature; 0, not some rounding, where it is constant."""
    constant = (e == e[0]).all(dim=0)
    return e.std(dim=0, correction=0).masked_fill(constant, 0)


class _Task(L.LightningModule):
    """One training of a decoder: what a step is, and what a validation is."""

    def __init__(
        self, decoder: Decoder, data: tuple[Tensor, Tensor], kept: Tensor, held: Tensor
    ) -> None:
        super().__init__()
        self.decoder, self.least = decoder, float("inf")
        self.best: dict[str, Tensor] = {}
        self.kept, self.held = (TensorDataset(*(x[rows] for x in data)) for rows in (kept, held))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.kept, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held, batch_size=len(self.held))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        error = self._loss(batch)
        self.log("error", error, prog_bar=True)
        if float(error) < self.least:
            self.least = float(error)
            self.best = {k: v.clone() for k, v in self.decoder.state_dict().items()}

    def _loss(self, batch: list[Tensor]) -> Tensor:
        e, shown = batch
        return nn.functional.mse_loss(self.decoder(e), shown)


def _trainer(epochs: int, patience: int, progress: bool) -> L.Trainer:
    callbacks: list[L.Callback] = [EarlyStopping("error", patience=patience)]
    if progress:
        callbacks.append(TQDMProgressBar(leave=False))
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
