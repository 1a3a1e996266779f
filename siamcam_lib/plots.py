"""Figures of the book: pictures, pairs, scores, training and explanations.

Used by every chapter. One colour for each idea throughout: similar pairs, dissimilar pairs, image
A, image B, each kind of map; heatmaps use a perceptually uniform scale that the colour-blind can
read.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from siamcam_lib.errors import DataError
from siamcam_lib.evaluation import Report
from siamcam_lib.explanation import Explanation
from siamcam_lib.files import shown
from siamcam_lib.pairs import PairSet
from siamcam_lib.training import Fit

SIMILAR, DISSIMILAR, NEUTRAL = "#0072B2", "#D55E00", "#6b7280"
"""Okabe and Ito's blue and vermilion: told apart by every kind of colour vision."""
SIGNED = LinearSegmentedColormap.from_list("signed", [DISSIMILAR, "white", SIMILAR])
"""Of raw maps, white at 0: blue speaks for similarity, vermilion against it."""
IMAGE_A, IMAGE_B = "#009E73", "#CC79A7"
"""Their green and reddish purple: what belongs to one picture of a pair, or to the other."""
FACTUAL, COUNTERFACTUAL, SHARED, SELF = "#332288", "#999933", "#882255", "#44AA99"
"""Tol's muted indigo, olive, wine and teal: curves of a kind of map."""
ONE, ANOTHER = "#E69F00", "#56B4E9"
"""Okabe and Ito's orange and sky blue: two things compared that are none of these."""
HEAT, OPACITY = "inferno", 0.85
FAINT = 0.1
"""Share of the scale below which nobody sees a heatmap on its picture."""
WIDTH = 7.2
"""Width of a figure in inches: the book's text column at the size its text is read."""


def use_style() -> None:
    """Set the book's figure style; the first cell of a chapter calls it."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "figure.constrained_layout.use": True,
        },
    )


def pictures(
    images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int = 6
) -> Figure:
    """Pictures side by side, in rows of `columns`, each under its title.

    Raises:
        DataError: if there is no picture, or not one title for each.
    """
    if not images or (titles is not None and len(titles) != len(images)):
        raise DataError(
            f"{len(images)} pictures and {len(titles or ())} titles were given; "
            "give at least one picture, and a title for each or none."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    told = ["\n".join(map(shown, str(title).split("\n"))) for title in titles or ()]
    above = max((0.1 + 0.15 * (1 + title.count("\n")) for title in told), default=0)  # inches
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, rows * (WIDTH / columns + above)), squeeze=False
    )
    for position, axis in enumerate(axes.flat):
        axis.axis("off")
        if position < len(images):
            axis.imshow(images[position])
            if told:
                axis.set_title(told[position], fontsize=9, parse_math=False)
    return figure


def pairs(chosen: PairSet, positions: Sequence[int], scores: np.ndarray | None = None) -> Figure:
    """Pairs as columns, image A above image B, titled by their label and, if given, their score.

    Args:
        chosen: Pairs.
        positions: Which of them to draw.
        scores: (m,) dissimilarity of every pair of `chosen`.
    """
    side = WIDTH / max(len(positions), 4)
    figure, axes = plt.subplots(
        2, len(positions), figsize=(side * len(positions), 2 * side + 0.5), squeeze=False
    )
    names = chosen.images.classes
    for column, k in enumerate(positions):
        label = int(chosen.label[k])
        title = ("similar", "dissimilar")[label]
        if scores is not None:
            title += f"\ny = {scores[k]:.2f}"
        for axis, index in zip(axes[:, column], (chosen.a[k], chosen.b[k]), strict=True):
            axis.imshow(chosen.images.image(int(index)))
            axis.set(xticks=[], yticks=[])
            name = shown(names[chosen.images.labels[index]])
            axis.set_xlabel(name, fontsize=9, parse_math=False)
            axis.spines[:].set(visible=True, color=(SIMILAR, DISSIMILAR)[label], linewidth=2)
        axes[0, column].set_title(title, fontsize=9, color=(SIMILAR, DISSIMILAR)[label])
    return figure


def scores(report: Report, axis: Axes | None = None) -> Axes:
    """Histograms of the dissimilarities of similar and dissimilar pairs, with the threshold."""
    axis = axis or plt.subplots(figsize=(WIDTH, 2.8))[1]
    bins = np.linspace(0, 1, 41)
    for label, (name, colour) in enumerate((("similar", SIMILAR), ("dissimilar", DISSIMILAR))):
        values = report.score[report.label == label]
        axis.hist(values, bins.tolist(), color=colour, alpha=0.6)
        axis.annotate(
            f"{name} pairs", (label, 1), (4 - 8 * label, -2), xycoords="axes fraction",
            textcoords="offset points", ha=("left", "right")[label], va="top", color=colour,
        )  # fmt: skip
    axis.axvline(report.threshold, ymax=0.86, color=NEUTRAL, linestyle="--")  # below the names
    axis.annotate(
        f" threshold {report.threshold:.2f}", (report.threshold, 0.86),
        xycoords=("data", "axes fraction"), va="top", color=NEUTRAL, fontsize=9,
    )  # fmt: skip
    axis.set(xlabel="dissimilarity y", ylabel="pairs", xlim=(0, 1))
    axis.margins(y=0.2)
    return axis


def history(fit: Fit) -> Figure:
    """Training loss and validation AUC by epoch; a mark at the epoch that was kept."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    epochs = [entry["epoch"] + 1 for entry in fit.history]
    left.plot(epochs, [entry["train_loss"] for entry in fit.history], color=NEUTRAL)
    left.set(xlabel="epoch", ylabel="training loss")
    auc = [entry["val_auc"] for entry in fit.history]
    right.plot(epochs, auc, color=NEUTRAL)
    kept = next(k for k, entry in enumerate(fit.history) if entry["epoch"] == fit.best_epoch)
    right.plot(epochs[kept], auc[kept], "o", color=SIMILAR)
    early = kept < len(epochs) / 2
    right.annotate(
        f"kept: {auc[kept]:.3f}", (epochs[kept], auc[kept]), (8 if early else 0, -8),
        textcoords="offset points", ha="left" if early else "right", va="top",
        color=SIMILAR, fontsize=9,
    )  # fmt: skip
    right.set(xlabel="epoch", ylabel="validation AUC")
    return figure


def blend(image: Image.Image, heatmap: np.ndarray, top: float) -> Image.Image:
    """A heatmap (H, W) laid over its picture, RGB; `top` is the value drawn brightest.

    Cool places keep the picture in grey, so that what is coloured is the map and nothing else.

    Example:
        >>> blend(Image.new("RGB", (3, 2), "white"), np.zeros((2, 3)), 0.0).getpixel((0, 0))
        (255, 255, 255)
    """
    grey = np.asarray(image.convert("L"), dtype=float)[:, :, None] / 255
    share = _share(heatmap, top)
    colour = plt.get_cmap(HEAT)(share)[:, :, :3]
    alpha = OPACITY * share[:, :, None]
    return Image.fromarray(np.rint(255 * ((1 - alpha) * grey + alpha * colour)).astype(np.uint8))


def _share(heatmap: np.ndarray, top: float) -> np.ndarray:
    return np.clip(heatmap / top, 0, 1) if top > 0 else np.zeros_like(heatmap)


def overlay(axis: Axes, image: Image.Image, heatmap: np.ndarray, top: float) -> None:
    """A heatmap (H, W) over its picture on an axis, as in `blend`; one too faint to see says so."""
    share = _share(heatmap, top)
    axis.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=0, vmax=255)
    axis.imshow(share, cmap=HEAT, vmin=0, vmax=1, alpha=OPACITY * share)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    most = float(share.max())
    said, height = "blank: zero everywhere", 0.5
    if heatmap.any():
        said, height = f"faint: ≤ {max(most, 0.001):.1%} of scale", 0.06
    if most < FAINT:
        axis.text(
            0.5, height, said, transform=axis.transAxes, ha="center", va="center", fontsize=9,
            color="white", bbox={"facecolor": "black", "alpha": 0.7},
        )  # fmt: skip


def explanation(ex: Explanation, *, shared_scale: bool = True) -> Figure:
    """Both pictures with their factual and counterfactual heatmaps.

    Args:
        ex: From `sc.explain`.
        shared_scale: One colour scale for all four maps, so that strengths can be compared;
            otherwise each map is as bright as its own maximum.
    """
    heights = [image.height / image.width for image in ex.images]
    figure, axes = plt.subplots(
        2, 3, figsize=(WIDTH, WIDTH / 3 * sum(heights) + 0.85), layout="constrained",
        squeeze=False, gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    kinds = (("factual", ex.factual), ("counterfactual", ex.counterfactual))
    top = ex.top
    for row, (name, image) in enumerate(zip("AB", ex.images, strict=True)):
        axes[row, 0].imshow(image)
        axes[row, 0].set(xticks=[], yticks=[], ylabel=f"image {name}")
        axes[row, 0].spines[:].set_visible(False)
        for column, (_, maps) in enumerate(kinds, start=1):
            heat = maps[row]
            overlay(axes[row, column], image, heat, top if shared_scale else float(heat.max()))
    other = {"similar": "dissimilar", "dissimilar": "similar"}[ex.decision]
    spoken = (ex.decision, other) if ex.polarity == "decision" else ("dissimilar", "similar")
    for column, ((name, _), side) in enumerate(zip(kinds, spoken, strict=True), start=1):
        axes[0, column].set_title(f"{name}\nspeaks for “{side}”", fontsize=10)
    axes[0, 0].set_title(
        f"judged {ex.decision}\ny = {ex.dissimilarity:.2f}, threshold {ex.threshold:.2f}",
        fontsize=10,
    )
    _key(figure, axes, "all four" if shared_scale else "each map")
    return figure


def _key(figure: Figure, axes: np.ndarray, maps: str) -> None:
    """What the colours of overlaid heatmaps say, below the axes."""
    steps = np.linspace(0, 1, 256)[None]
    colours = np.asarray(blend(Image.new("L", (256, 1), 128).convert("RGB"), steps, 1.0)) / 255
    key = figure.colorbar(
        ScalarMappable(cmap=ListedColormap(colours[0])), ax=axes, location="bottom", shrink=0.62,
        anchor=(1.0, 1.0), aspect=50, pad=0.02, ticks=[0, 1],
    )  # fmt: skip
    key.ax.set_xticklabels(["no evidence", f"strongest place of {maps}"])
    for label, side in zip(key.ax.get_xticklabels(), ("left", "right"), strict=True):
        label.set(ha=side, fontsize=9)
    key.ax.tick_params(length=0)
    key.outline.set_visible(False)  # type: ignore[operator]
