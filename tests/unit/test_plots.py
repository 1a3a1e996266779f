"""Figures: what is on them, in which colours, on which scale; and that none is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

import siamcam_lib as sc
from siamcam_lib import plots
from siamcam_lib.errors import DataError
from siamcam_lib.evaluation import report

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Every function opens one figure at most; closing it leaves none."""
    plt.close("all")
    yield
    assert len(plt.get_fignums()) <= 1
    for number in plt.get_fignums():
        plt.close(plt.figure(number))
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def scenes() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=10)


def _picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 160, 90))


def _texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


# --- style --------------------------------------------------------------------------------------


def test_style_sets_the_resolution_of_pages_and_can_be_undone() -> None:
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.dpi"] == plt.rcParams["savefig.dpi"] == 110
        assert plt.rcParams["axes.spines.top"] is False


def test_similar_and_dissimilar_are_told_apart_without_colour() -> None:
    def lightness(colour: str) -> float:
        r, g, b, _ = to_rgba(colour)
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert abs(lightness(plots.SIMILAR) - lightness(plots.DISSIMILAR)) > 0.1


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (6, 1, 6), (7, 2, 6)])
def test_pictures_fill_rows(count: int, rows: int, columns: int) -> None:
    figure = plots.pictures([_picture()] * count)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == rows * columns
    assert sum(len(axis.images) for axis in figure.axes) == count
    assert figure.get_size_inches()[0] == pytest.approx(plots.WIDTH)
    assert all(not axis.axison for axis in figure.axes)


def test_pictures_carry_their_titles() -> None:
    figure = plots.pictures([_picture(), _picture()], ["a rose", "a tulip"], columns=1)
    assert [axis.get_title() for axis in figure.axes] == ["a rose", "a tulip"]


def test_titles_of_several_lines_get_the_room_they_need() -> None:
    heights = []
    for text in ("a rose", "a rose\nred\x07"):
        figure = plots.pictures([_picture()], [text])
        assert figure.axes[0].get_title() == text.replace("\x07", "\ufffd")
        heights.append(figure.get_size_inches()[1])
        plt.close(figure)
    assert heights[1] - heights[0] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("count", "titles", "said"),
    [(0, None, "0 pictures"), (2, ["one"], "2 pictures and 1 titles"), (1, [], "1 pictures and 0")],
)
def test_pictures_refuse_a_wrong_number(count: int, titles: list[str] | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        plots.pictures([_picture()] * count, titles)
    assert plt.get_fignums() == []


# --- pairs --------------------------------------------------------------------------------------


def test_pairs_stand_in_columns_named_and_coloured(scenes: sc.datasets.ImageSet) -> None:
    chosen = sc.pairs.sample(scenes, seed=0)
    positions = [int(np.flatnonzero(chosen.label == side)[0]) for side in (0, 1)]
    score = np.linspace(0, 1, len(chosen))
    figure = plots.pairs(chosen, positions, score)
    assert len(figure.axes) == 4
    top, bottom = figure.axes[:2], figure.axes[2:]
    for column, k in enumerate(positions):
        name = ("similar", "dissimilar")[column]
        assert top[column].get_title() == f"{name}\ny = {score[k]:.2f}"
        colour = to_rgba((plots.SIMILAR, plots.DISSIMILAR)[column])
        for axis, index in ((top[column], chosen.a[k]), (bottom[column], chosen.b[k])):
            assert axis.get_xlabel() == scenes.classes[scenes.labels[index]]
            assert all(spine.get_edgecolor() == colour for spine in axis.spines.values())
            np.testing.assert_array_equal(
                axis.images[0].get_array(), np.asarray(scenes.image(int(index)))
            )


def test_pairs_without_scores_are_titled_by_their_label(scenes: sc.datasets.ImageSet) -> None:
    figure = plots.pairs(sc.pairs.sample(scenes, seed=0), [0])
    assert figure.axes[0].get_title() in ("similar", "dissimilar")


# --- scores -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored() -> sc.Report:
    label = np.arange(100) % 2
    score = np.clip(np.random.default_rng(0).normal(0.3 + 0.4 * label, 0.15), 0, 1)
    return report(score, label, 0.42, bootstrap=10)


def test_scores_are_two_labelled_histograms_and_a_threshold(scored: sc.Report) -> None:
    axis = plots.scores(scored)
    assert isinstance(axis, Axes)
    assert axis.get_xlabel() == "dissimilarity y" and axis.get_ylabel() == "pairs"
    assert axis.get_xlim() == (0, 1)
    said = _texts(axis.figure)
    for part in ("similar pairs", "dissimilar pairs", "threshold 0.42"):
        assert part in said
    assert axis.lines[0].get_xdata()[0] == 0.42
    by_colour = {
        side: sum(bar.get_height() for bar in axis.patches if bar.get_facecolor()[:3] == rgb)
        for side, rgb in enumerate(to_rgba(c)[:3] for c in (plots.SIMILAR, plots.DISSIMILAR))
    }
    assert by_colour == {0: 50, 1: 50}  # every pair is drawn, on its own side


def test_scores_go_on_a_given_axis(scored: sc.Report) -> None:
    figure, axes = plt.subplots(1, 2)
    assert plots.scores(scored, axes[1]) is axes[1]
    assert not axes[0].patches
    assert len(plt.get_fignums()) == 1


# --- history ------------------------------------------------------------------------------------


def test_history_marks_the_epoch_that_was_kept() -> None:
    entries = tuple(
        {"epoch": k, "train_loss": 1 / (k + 1), "val_auc": auc, "seconds": 0.1}
        for k, auc in enumerate((0.7, 0.9, 0.8))
    )
    fit = sc.Fit(entries, 1, 0.5, 1.0, "margin", False, 0)
    figure = plots.history(fit)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "training loss")
    assert (right.get_xlabel(), right.get_ylabel()) == ("epoch", "validation AUC")
    assert list(left.lines[0].get_xdata()) == [1, 2, 3]
    mark = right.lines[1]
    assert (float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) == (2, 0.9)
    assert "kept: 0.900" in _texts(figure)


# --- explanations -------------------------------------------------------------------------------


def _explanation(
    factual: tuple[float, float] = (4.0, 1.0),
    counterfactual: tuple[float, float] = (2.0, 0.5),
    **changes: object,
) -> sc.Explanation:
    """Flat maps of the given strengths on two pictures of different sizes."""
    images = (_picture(40, 30), _picture(20, 50))

    def maps(strengths: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        a, b = (
            np.full((image.height, image.width), strength, np.float32)
            for image, strength in zip(images, strengths, strict=True)
        )
        return a, b

    fields = {
        "images": images, "dissimilarity": 0.25, "threshold": 0.5,
        "raw": (np.zeros((2, 2), np.float32),) * 2, "factual": maps(factual),
        "counterfactual": maps(counterfactual), "method": "gradcam", "polarity": "decision",
    }  # fmt: skip
    return sc.Explanation(**(fields | changes))


def _drawn(figure: Figure) -> np.ndarray:
    """Brightest drawn value of each of the four heatmaps, (row of images, kind)."""
    heats = [axis.images[1] for axis in figure.axes if len(axis.images) == 2]
    assert all((heat.norm.vmin, heat.norm.vmax) == (0, 1) for heat in heats)
    return np.array([np.max(heat.get_array()) for heat in heats]).reshape(2, 2)


def test_explanation_draws_both_pictures_and_four_maps() -> None:
    figure = plots.explanation(_explanation())
    *panels, key = figure.axes
    assert [len(axis.images) for axis in panels] == [1, 2, 2, 1, 2, 2]
    ends = [label.get_text() for label in key.get_xticklabels()]
    assert ends == ["no evidence", "strongest place of all four"]
    for row, size in enumerate(((30, 40), (50, 20))):
        for axis in figure.axes[3 * row : 3 * row + 3]:
            assert all(layer.get_array().shape[:2] == size for layer in axis.images)
    said = _texts(figure)
    for part in ("image A", "image B", "judged similar", "y = 0.25, threshold 0.50"):
        assert part in said
    assert "blank" not in said


def test_shared_scale_keeps_the_strengths_of_all_maps_comparable() -> None:
    ex = _explanation(factual=(4, 1), counterfactual=(2, 0.5))
    np.testing.assert_allclose(_drawn(plots.explanation(ex)), [[1, 0.5], [0.25, 0.125]])


def test_without_it_each_map_is_as_bright_as_its_own_maximum() -> None:
    figure = plots.explanation(_explanation(), shared_scale=False)
    np.testing.assert_allclose(_drawn(figure), 1)
    assert "strongest place of each map" in figure.axes[-1].get_xticklabels()[1].get_text()


def test_the_key_has_the_colours_of_the_maps() -> None:
    """Its right end is what the strongest place looks like on a picture of middle grey."""
    figure = plots.explanation(_explanation())
    (bar,) = (c for c in figure.axes[-1].collections if c.get_array() is not None)
    ends = bar.cmap([0.0, 1.0])[:, :3]
    for value, end in zip((0.0, 1.0), ends, strict=True):
        grey = Image.new("RGB", (1, 1), (128, 128, 128))
        pixel = plots.blend(grey, np.full((1, 1), value), 1.0).getpixel((0, 0))
        np.testing.assert_allclose(end * 255, pixel, atol=1)


@pytest.mark.parametrize("shared_scale", [True, False])
def test_a_blank_map_says_so(shared_scale: bool) -> None:
    ex = _explanation(factual=(0, 3), counterfactual=(0, 0))
    figure = plots.explanation(ex, shared_scale=shared_scale)
    blank = ["blank" in "".join(t.get_text() for t in axis.texts) for axis in figure.axes]
    assert blank == [False, True, True, False, False, True, False]
    np.testing.assert_allclose(_drawn(figure), [[0, 0], [1, 0]])


def test_a_faint_map_says_how_faint_it_is() -> None:
    said = [
        "".join(text.get_text() for text in axis.texts)
        for axis in plots.explanation(_explanation((4, 0.24), (0.5, 1e-9))).axes
    ]
    faint = ["faint: ≤ 6.0% of scale", "faint: ≤ 0.1% of scale"]
    assert said == ["", "", "", "", *faint, ""]


def test_all_maps_blank_is_drawn_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    figure = plots.explanation(_explanation((0, 0), (0, 0)))
    figure.canvas.draw()
    assert _texts(figure).count("blank: zero everywhere") == 4
    assert not [str(w.message) for w in recwarn]


@pytest.mark.parametrize(
    ("y", "polarity", "factual", "counterfactual"),
    [
        (0.25, "decision", "similar", "dissimilar"),
        (0.75, "decision", "dissimilar", "similar"),
        (0.25, "paper", "dissimilar", "similar"),
        (0.75, "paper", "dissimilar", "similar"),
    ],
)
def test_columns_say_what_they_speak_for(
    y: float, polarity: str, factual: str, counterfactual: str
) -> None:
    figure = plots.explanation(_explanation(dissimilarity=y, polarity=polarity))
    assert figure.axes[1].get_title() == f"factual\nspeaks for “{factual}”"
    assert figure.axes[2].get_title() == f"counterfactual\nspeaks for “{counterfactual}”"


def test_overlay_keeps_the_picture_where_the_map_is_cool() -> None:
    _, axis = plt.subplots()
    heat = np.zeros((30, 40), np.float32)
    heat[:, 20:] = 2
    plots.overlay(axis, _picture(), heat, top=4.0)
    under, over = axis.images
    assert under.get_array().shape == (30, 40)  # the picture in grey
    assert over.get_alpha()[0, 0] == 0 and over.get_alpha()[0, 39] == pytest.approx(0.425)
    assert over.get_array()[0, 39] == 0.5


def test_overlay_clips_what_is_brighter_than_its_scale() -> None:
    _, axis = plt.subplots()
    plots.overlay(axis, _picture(), np.full((30, 40), 9, np.float32), top=3.0)
    assert axis.images[1].get_array().max() == 1


def test_saving_an_explanation_leaves_no_figure(tmp_path) -> None:
    _explanation().save(tmp_path)
    assert plt.get_fignums() == []
    assert (tmp_path / "explanation.png").stat().st_size > 0
