"""What a training picture goes through before the network sees it.

Taught in the Flowers chapter. Every draw is a function of the seed, the epoch and the picture, so
that an interrupted training sees, when resumed, exactly what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError


def default_augmentation(size: int) -> v2.Transform:
    """Random crop to `size` pixels, mirror image, mild change of colour; PIL → float [0, 1]."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


class AugmentedImages(Dataset):
    """Batches of pictures and labels; each picture's draw seeds its augmentation."""

    def __init__(self, images: ImageSet, transform: v2.Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, batch: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = []
        for position, draw in batch:
            picture = self.images.image(position)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(draw)
                pictures.append(self.transform(picture))
        labels = self.images.labels[[position for position, _ in batch]]
        return torch.stack(pictures), torch.from_numpy(labels)


class Batches(Sampler):
    """One epoch of batches [(position, draw), …]: shuffled images, or the paper's random pairs.

    Args:
        labels: (n,) class of each image.
        batch_size: Images in a batch; at most n are used.
        steps: Batches an epoch; by default one pass over the images.
        given_pairs: Make a batch of anchors followed by their partners, half of them of the same
            class, as `Objective.given_pairs` wants it.
        seed: Together with `epoch`, fixes everything.
        epoch: Which epoch's batches these are.

    Example:
        >>> batches = Batches(np.array([0, 0, 1, 1]), batch_size=2, seed=0)
        >>> [len(batch) for batch in batches]
        [2, 2]
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        steps: int | None = None,
        given_pairs: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.labels = np.asarray(labels)
        if len(np.unique(self.labels)) < 2:
            raise PairError(
                f"{len(self.labels)} training images of one class or none; pairs need at least "
                "two classes."
            )
        self.size = min(batch_size, len(self.labels))
        self.anchors = max(1, self.size // 2) if given_pairs else self.size
        self.given_pairs, self.seed, self.epoch = given_pairs, seed, epoch
        self.steps = steps or max(1, len(self.labels) // self.size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = np.random.default_rng([self.seed, self.epoch])
        passes = -(-self.steps * self.anchors // len(self.labels))
        order = np.concatenate([random.permutation(len(self.labels)) for _ in range(passes)])
        for step in range(self.steps):
            chosen = order[step * self.anchors : (step + 1) * self.anchors]
            if self.given_pairs:
                chosen = np.concatenate([chosen, self._partners(chosen, random)])
            draws = random.integers(2**62, size=len(chosen))
            yield list(zip(chosen.tolist(), draws.tolist(), strict=True))

    def _partners(self, anchors: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """For every other anchor an image of its class, for the rest one of another class."""
        found = []
        for turn, anchor in enumerate(anchors):
            same = self.labels == self.labels[anchor]
            same[anchor] = False
            other = self.labels != self.labels[anchor]
            alike = turn % 2 == 0 and same.any()
            found.append(random.choice(np.flatnonzero(same if alike else other)))
        return np.array(found)
