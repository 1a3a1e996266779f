"""Every explainer on every measure, on the same pairs: one tidy table.

Taught in the chapter on measuring explanations. A map is made once, however many measures take it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib import explainers as registry
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import faithfulness, localisation, robustness
from siamcam_lib.evaluation.faithfulness import area, change, for_decision
from siamcam_lib.evaluation.statistics import mean_interval
from siamcam_lib.explaining import Explainer, Pairs


@dataclass(frozen=True)
class Measure:
    """One column of a league table.

    Attributes:
        title: Its name in tables.
        higher: Whether more is better.
        of: (pairs, maps) → (B,) values; with `again`, (explainer, pairs, maps, seed=...) → (B,).
        again: Whether changed pictures are explained again, so that the explainer is needed.
        within: What its mean can be at all, (0, 1) for a share; see `mean_interval`.
    """

    title: str
    higher: bool
    of: Callable[..., np.ndarray]
    again: bool = False
    within: tuple[float, float] = (-np.inf, np.inf)


MEASURES: dict[str, Measure] = {
    "deletion": Measure(
        "deletion, area", False, lambda pairs, maps: area(faithfulness.deletion(pairs, maps))
    ),
    "insertion": Measure(
        "insertion, area", True, lambda pairs, maps: area(faithfulness.insertion(pairs, maps))
    ),
    "selectivity": Measure(
        "selectivity, area of the change",
        False,
        lambda pairs, maps: area(change(faithfulness.selectivity(pairs, maps, every=4))),
    ),
    "road": Measure(
        "ROAD, mean change",
        False,
        lambda pairs, maps: change(faithfulness.road(pairs, maps))[:, 1:].mean(axis=1),
    ),
    "infidelity": Measure("infidelity, best scale", False, faithfulness.infidelity),
    "blank": Measure(
        "blank maps",
        False,
        lambda pairs, maps: localisation.blank(for_decision(pairs, maps)).mean(axis=1),
        within=(0, 1),
    ),
    "continuity": Measure(
        "change when shifted by 8 pixels, shifted back",
        False,
        lambda *given, seed: robustness.continuity(*given, shifts=(8,), seed=seed).followed[:, 0],
        again=True,
    ),
    "max_sensitivity": Measure(
        "max-sensitivity", False, robustness.max_sensitivity, again=True
    ),
    "randomised": Measure(
        "correlation after randomising",
        False,
        lambda *given, seed: robustness.randomised_layers(*given, stages=2, seed=seed)[:, -1],
        again=True,
    ),
}  # fmt: skip
"""The measures that need no planted truth. `planted` makes those that do."""

LOCALISATION = {
    "energy": ("energy", localisation.energy),
    "pointing": ("pointing", localisation.pointing),
    "precision": ("average precision", localisation.average_precision),
}


def planted(part: str, masks: np.ndarray | Tensor, *, higher: bool = True) -> dict[str, Measure]:
    """Energy, pointing and average precision on one planted part, as measures.

    Args:
        part: Its name: ``"deciding"``.
        masks: (B, 2, H, W) bool: where it is in both pictures of each pair.
        higher: False for a part that a map should not name, such as a shortcut.

    Returns:
        ``{"energy on deciding": Measure, ...}``; both pictures of a pair are averaged.

    Example:
        >>> list(planted("deciding", np.ones((1, 2, 8, 8), bool)))
        ['energy on deciding', 'pointing on deciding', 'precision on deciding']
    """

    def mean_of(measure: Callable) -> Callable[[Pairs, Tensor], np.ndarray]:
        return lambda pairs, maps: measure(maps, masks).mean(axis=1)

    return {
        f"{name} on {part}": Measure(f"{title} on {part}", higher, mean_of(measure), within=(0, 1))
        for name, (title, measure) in LOCALISATION.items()
    }


def of_another(measure: Measure) -> Measure:
    """A control: the same measure of each pair, but of another pair's maps.

    What such maps still find is due to where things tend to stand, and to nothing in the pair. A
    random map is a weaker control: it does not know the usual place either. Each pair gets the
    maps of the next one that shows none of its pictures, one that is judged alike if there is one.
    Where a part stands at one place in all pictures, both maps find it alike, and the measure
    cannot tell an explanation from a habit.

    Args:
        measure: One of `planted`, or of `MEASURES` where no picture is explained again.

    Returns:
        The measure, with “another's” in its title.

    Raises:
        EvaluationError: if pictures are explained again; and, when it is taken, if some pair has
            no other without its pictures.

    Example:
        >>> own = planted("part", np.ones((2, 2, 8, 8), bool))["energy on part"]
        >>> print(of_another(own).title)
        energy on part, another's
    """
    if measure.again:
        raise EvaluationError(
            f"{measure.title!r} explains changed pictures again, so that another pair's maps are "
            "not what it measures; give a measure of maps."
        )

    def of(pairs: Pairs, maps: Tensor) -> np.ndarray:
        return measure.of(pairs, maps[_next_apart(pairs)])

    return replace(measure, title=f"{measure.title}, another's", of=of)


def _next_apart(pairs: Pairs) -> list[int]:
    """For each pair the next one that shows none of its pictures, if possible judged alike."""
    shown = [set(ends) for ends in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)]
    similar = (pairs.compared.dissimilarity < pairs.seeing.threshold).tolist()
    count, found = len(pairs), []
    for k in range(count):
        apart = [j % count for j in range(k + 1, k + count) if not shown[k] & shown[j % count]]
        if not apart:
            raise EvaluationError(
                f"Pair {k} of {count} has no other pair without its pictures, whose maps could be "
                "a control; give more pairs."
            )
        found.append(min(apart, key=lambda j: similar[j] != similar[k]))
    return found


class League(NamedTuple):
    """What `league` finds.

    Attributes:
        values: One row an explainer, measure and pair: ``explainer``, ``measure``, ``pair``,
            ``value``.
        summary: One row an explainer and measure: ``explainer``, ``measure``, ``mean``, ``low``,
            ``high`` (95% bootstrap interval), ``higher`` (whether more is better), ``seconds``
            (to explain a pair, besides the one look at its pictures that all share).
    """

    values: pd.DataFrame
    summary: pd.DataFrame


def league(
    explainers: Mapping[str, Explainer] | Iterable[str | Explainer],
    pairs: Pairs,
    measures: Mapping[str, Measure] = MEASURES,
    *,
    cluster: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> League:
    """Hold every explainer to every measure, on the same pairs.

    Args:
        explainers: Names, or explainers, fitted where they must be; a mapping gives them names of
            its own.
        pairs: B pairs.
        measures: By name; `MEASURES`, a part of them, and what `planted` gives.
        cluster: (B,) what is drawn together in the bootstrap, as in `mean_interval`.
        seed: Of methods that draw.
        progress: Show progress over explainers.

    Returns:
        The `League`.

    Raises:
        EvaluationError: if an explainer or a measure fails, with the names of both; if two
            explainers have one name, or there is no explainer or no measure.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
        >>> pairs = Pairs(net, [images.image(0)], [images.image(1)])
        >>> chosen = {name: MEASURES[name] for name in ("deletion", "blank")}
        >>> found = league(["shared", "random"], pairs, chosen, progress=False)
        >>> found.values.shape, sorted(set(found.summary.explainer))
        ((4, 4), ['random', 'shared'])
    """
    named = _named(explainers)
    if not named or not measures:
        raise EvaluationError(
            f"A league needs explainers and measures; {len(named)} and {len(measures)} were given."
        )
    _ = pairs.seen, pairs.compared  # what all share is nobody's time
    values, rows = [], []
    bar = tqdm(named.items(), "explainers", disable=not progress, unit="explainer")
    for name, explainer in bar:
        bar.set_postfix_str(name)
        begin = perf_counter()
        with _telling(f"The explainer {name!r}"):
            maps = explainer(pairs, seed=seed)
        seconds = (perf_counter() - begin) / len(pairs)
        for title, measure in measures.items():
            with _telling(f"The measure {title!r} of the explainer {name!r}"):
                # who explains again draws as for the maps at hand
                draws = functools.partial(measure.of, explainer, seed=seed)
                found = np.asarray((draws if measure.again else measure.of)(pairs, maps), float)
                if found.shape != (len(pairs),):
                    raise EvaluationError(f"gave {found.shape}, not one value a pair")
                mean = mean_interval(found, cluster, within=measure.within)
            rows.append((name, title, *mean, measure.higher, seconds))
            values += [(name, title, k, value) for k, value in enumerate(found.tolist())]
    return League(
        pd.DataFrame(values, columns=["explainer", "measure", "pair", "value"]),
        pd.DataFrame(
            rows,
            columns=["explainer", "measure", "mean", "low", "high", "higher", "seconds"],
        ),
    )


@contextmanager
def _telling(who: str) -> Iterator[None]:
    """Whatever goes wrong inside is told with its name."""
    try:
        yield
    except Exception as error:
        raise EvaluationError(f"{who} failed: {error}") from error


def _named(
    explainers: Mapping[str, Explainer] | Iterable[str | Explainer],
) -> dict[str, Explainer]:
    if isinstance(explainers, Mapping):
        return dict(explainers)
    found: dict[str, Explainer] = {}
    for given in explainers:
        explainer = given if isinstance(given, Explainer) else registry.get(given)
        if explainer.name in found:
            raise EvaluationError(
                f"Two explainers are called {explainer.name!r}; pass a mapping, with names of your "
                "own."
            )
        found[explainer.name] = explainer
    return found
