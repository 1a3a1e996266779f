"""Records of results: kept in the notebook that shows them, and read back as they were."""

from __future__ import annotations

import nbformat
import pytest
from nbformat import v4

import siamcam_lib as sc
from siamcam_lib import results
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Estimate


@pytest.fixture(scope="module")
def images():
    return sc.datasets.load("scenes/flowers", n=10)


def record(images, setting="frozen", **more):
    measures = {"accuracy": (0.9, 0.8, 0.95), "auc": Estimate(0.95, 0.9, 0.99)}
    return results.record(
        "flowers", setting, measures, images, seeds=range(3), seconds=12.3, profile="quick", **more
    )


def executed(path, *shown):
    """A notebook whose cells show these, as a kernel leaves them."""
    cells = []
    for each in shown:
        data, kept = each._repr_mimebundle_()
        output = v4.new_output("display_data", data=data, metadata=kept)
        cells.append(v4.new_code_cell("…", outputs=[output], execution_count=1))
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *cells]), path)
    return path


def test_names_all_that_is_needed_to_get_it_again(images):
    made = record(images)
    assert (made.images, made.origin, made.count) == (images.name, "scenes", 10)
    assert made.digest == images.fingerprint() and made.seeds == (0, 1, 2)
    assert made.versions.keys() >= {"Python", "torch", "numpy"}
    assert made.measures["accuracy"] == Estimate(0.9, 0.8, 0.95)


def test_of_a_study():
    images = sc.datasets.load("scenes/flowers", n=100)
    recipe = sc.Recipe(2, 32, steps=2)
    made = sc.study(images, range(2), net=lambda: sc.SiameseNet(image_size=64), recipe=recipe)
    found = results.record("flowers", "tiny", made, profile="quick")
    assert found.seeds == (0, 1) and found.seconds == made.seconds and found.count == 100
    assert found.measures == made.estimates()


def test_shown_records_are_read_back_in_order(images, tmp_path):
    first, second = record(images), record(images, "fine-tuned", protocol="paper")
    path = executed(tmp_path / "a.ipynb", results.show(first), results.show(second, first))
    assert results.read(path) == [first, second, first]
    assert results.read(executed(tmp_path / "b.ipynb")) == []


def test_measures_keep_their_order_in_a_notebook(images, tmp_path):
    measures = {name: (0.5, 0.4, 0.6) for name in ("Recall@1", "Recall@5", "Recall@10")}
    made = results.record("gallery", "frozen", measures, images, profile="quick")
    path = executed(tmp_path / "a.ipynb", results.show(made))
    assert list(results.read(path)[0].measures) == [*measures]


def test_the_table_has_a_dash_where_nothing_was_measured(images):
    other = results.record("flowers", "a | b <i>", {"gain": (1, 0, 2)}, images, profile="quick")
    shown = results.show(record(images), other)
    row = "| frozen | 0.900 [0.800, 0.950] | 0.950 [0.900, 0.990] | – |"
    assert repr(shown).splitlines()[2] == row
    assert repr(shown).splitlines()[3].startswith("| a \\| b <i> | – | – | 1.000 ")
    page = shown._repr_mimebundle_()[0]["text/html"]
    assert "a | b &lt;i&gt;" in page and "<td>0.900 [0.800, 0.950]</td>" in page


def test_where_numbers_come_from_is_told(images):
    text = results.provenance([record(images), record(images, "other", protocol="paper")])
    row = text.splitlines()[2]
    assert f"`{images.fingerprint()[:12]}`" in row and "0, 1, 2" in row and "12 s" in row
    assert "| sound |" in row and "| paper |" in text
    assert text.splitlines()[-1].startswith("Made with ") and "torch " in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "quick"}, "protocol is 'sound' or 'paper'"),
        ({"images": None}, "Which images"),
        ({"measures": {"auc": (0.5, 0.6, 0.7)}}, "does not lie in its interval"),
        ({"measures": {"auc": (float("nan"), 0.6, 0.7)}}, "does not lie in its interval"),
    ],
)
def test_refuses(images, change, said):
    given = {"measures": {"auc": (0.5, 0.4, 0.7)}, "images": images, **change}
    with pytest.raises(EvaluationError, match=said):
        results.record("flowers", "x", **given, profile="quick")


def test_nothing_to_show():
    with pytest.raises(EvaluationError, match="no record"):
        results.show()


@pytest.mark.parametrize("damage", ["", "{", "{}", "no study"])
def test_a_damaged_notebook_is_told(images, tmp_path, damage):
    path = tmp_path / "a.ipynb"
    if damage == "no study":
        row = results.show(record(images))._repr_mimebundle_()[1][results.KEPT][0]
        del row["study"]
        output = v4.new_output("display_data", metadata={results.KEPT: [row]})
        cells = [v4.new_code_cell("x", outputs=[output])]
        nbformat.write(v4.new_notebook(cells=cells), path)
    else:
        path.write_text(damage)
    with pytest.raises(EvaluationError, match="run the chapter again"):
        results.read(path)
