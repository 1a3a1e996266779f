"""One experiment over several seeds: split, train, calibrate, judge, and again.

Taught in the case studies. A single run is an anecdote; a `Study` holds the runs of all seeds, the
table of their numbers and the interval over seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Comparison, Estimate, Report, compare, evaluate, over_seeds
from siamcam_lib.model import SiameseNet
from siamcam_lib.pairs import PairSet, Split, forget_groups, sample, split
from siamcam_lib.training import Fit, fit


@dataclass(frozen=True)
class Run:
    """One seed of a study.

    Attributes:
        seed: Of the split, the pairs, the training and the bootstrap.
        split: What was learned from, chosen by and judged on; as `prepare` left it.
        pairs: Test pairs.
        net: Trained and calibrated.
        fit: What the training did.
        report: Metrics on the test pairs.
        seconds: Wall-clock time of the whole run.
    """

    seed: int
    split: Split
    pairs: PairSet
    net: SiameseNet
    fit: Fit
    report: Report
    seconds: float

    @property
    def anchors(self) -> list[str]:
        """Name of the picture each test pair belongs to, the same in every seed."""
        return [self.pairs.images.items[i] for i in self.pairs.a]

    @property
    def named_pairs(self) -> list[tuple[str, str]]:
        """Names of both pictures of each test pair."""
        partners = [self.pairs.images.items[i] for i in self.pairs.b]
        return list(zip(self.anchors, partners, strict=True))


@dataclass(frozen=True)
class Study:
    """All runs of one experiment.

    Attributes:
        images: The set it was made on.
        runs: One a seed.
    """

    images: ImageSet
    runs: tuple[Run, ...]

    def __getitem__(self, seed: int) -> Run:
        for run in self.runs:
            if run.seed == seed:
                return run
        raise EvaluationError(f"Seed {seed} is not in this study; it has {self.seeds}.")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order they were run."""
        return tuple(run.seed for run in self.runs)

    @property
    def seconds(self) -> float:
        """Wall-clock time of all runs together."""
        return sum(run.seconds for run in self.runs)

    def table(self) -> pd.DataFrame:
        """The four metrics (rows) of each seed (columns)."""
        return pd.DataFrame({f"seed {run.seed}": dict(run.report) for run in self.runs})

    def estimates(self) -> dict[str, Estimate]:
        """Each metric's mean over seeds with Student's interval."""
        return {name: over_seeds(row, (0, 1)) for name, row in self.table().iterrows()}

    def against(self, other: Study) -> Comparison:
        """This study's models against those of `other`, seed by seed and pair by pair.

        Raises:
            EvaluationError: if the two were not made with the same seeds on the same pairs.
        """
        if self.seeds != other.seeds:
            raise EvaluationError(f"Seeds {self.seeds} cannot be compared with {other.seeds}.")
        for mine, its in zip(self.runs, other.runs, strict=True):
            if mine.named_pairs != its.named_pairs:
                raise EvaluationError(
                    f"The two studies judge other pairs in seed {mine.seed}; make both on the same "
                    "images, and change pictures in `prepare`, after the split."
                )
        return compare(
            [run.report for run in other.runs],
            [run.report for run in self.runs],
            [run.anchors for run in self.runs],
        )


def study(
    images: ImageSet,
    seeds: Iterable[int],
    *,
    net: Callable[[], SiameseNet] = SiameseNet,
    prepare: Callable[[Split, int], Split] | None = None,
    grouped: bool = True,
    progress: bool = False,
    **options: Any,
) -> Study:
    """Split, train, calibrate and judge, once for each seed.

    Args:
        images: What is split.
        seeds: Each is the seed of split, pairs, training and bootstrap of its run.
        net: Makes an untrained network; by default ``SiameseNet()``.
        prepare: Changes the parts before training, for instance crops the pictures; gets the split
            and the seed. Which test pairs are judged is drawn before, so that two studies that
            differ in `prepare` are judged on the same pairs.
        grouped: As in `sc.pairs.split`. False trains on parts that share groups, which `sc.fit`
            by itself refuses: to measure what the leak is worth.
        progress: Show the progress of each training.
        options: Of `sc.fit`, for instance ``finetune=True``; in `folder` each seed gets one of its
            own.

    Raises:
        EvaluationError: if there is no seed, or `prepare` changes how many test pictures there are.
        PairError: if the images cannot be split by one of the seeds; told before any training.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=100)
        >>> quick = sc.Recipe(2, 32, steps=2)
        >>> made = study(images, range(2), net=lambda: SiameseNet(image_size=96), recipe=quick)
        >>> made.table().shape
        (4, 2)
    """
    runs, folder, seeds = [], options.get("folder"), list(seeds)
    for seed in seeds:  # remembered: what one cannot split is told before others are trained
        _split(images, seed, grouped)
    for seed in seeds:
        start = time.perf_counter()
        parts = _split(images, seed, grouped)
        pairs = sample(parts.test, seed)
        if prepare is not None:
            parts = prepare(parts, seed)
            if len(parts.test) != len(pairs.images):
                raise EvaluationError(
                    f"prepare gave {len(parts.test)} test pictures for {len(pairs.images)}; pairs "
                    "were drawn from the latter, so none may be added or left out."
                )
            pairs = replace(pairs, images=parts.test)
        model = net()
        known = parts if grouped else forget_groups(parts)
        own = options | {"folder": Path(folder) / f"seed-{seed}"} if folder else options
        done = fit(model, known, seed, progress=progress, **own)
        cache = options.get("cache")
        report = evaluate(model, pairs, seed=seed, cache=cache, progress=progress)
        seconds = time.perf_counter() - start
        runs.append(Run(seed, parts, pairs, model, done, report, seconds))
    if not runs:
        raise EvaluationError("A study needs at least one seed; none was given.")
    return Study(images, tuple(runs))


_splits: dict[tuple[str, int, bool], Split] = {}


def _split(images: ImageSet, seed: int, grouped: bool) -> Split:
    """`sc.pairs.split`, made once in a session: of thousands of pictures it takes seconds."""
    key = images.fingerprint(), seed, grouped
    if key not in _splits:
        _splits[key] = split(images, seed, grouped=grouped)
    return _splits[key]
