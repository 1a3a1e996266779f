"""The explorers' Python half: what travels, how large it is, and what stands in its place."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from ipywidgets.embed import dependency_state
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.errors import GalleryError
from siamcam_lib.gallery import Gallery, _Held, _Pictures
from siamcam_lib.widgets import Explorer, pair_explorer, to_html
from siamcam_lib.widgets.base import STATE_LIMIT, packed, picture, size
from siamcam_lib.widgets.pair import _spread

TYPES = {
    "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "float16": "<f2", "float32": "<f4", "float64": "<f8",
}  # fmt: skip
UNIT = {"comparison": "siamese", "unit": True, "slope": 5.0, "offset": -4.0}


def unpacked(array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), TYPES[array["kind"]])


def gallery(images, shape=(8, 3, 3), settings=UNIT, seed=0, silent=0.5) -> Gallery:
    """A gallery of random maps, of whose units a share is silent in each image."""
    generator = np.random.default_rng(seed)
    maps = generator.normal(size=(len(images), *shape)).astype(np.float32)
    maps *= (generator.random((len(images), shape[0], 1, 1)) >= silent) * 1e-3
    rows, pictures = _Held(), _Pictures(images)
    rows.add({
        "maps": maps, "scale": np.ones(len(maps), np.float32),
        "embedding": np.maximum(maps.sum(axis=(2, 3)), 0),
        "size": np.array([pictures[i].size for i in range(len(pictures))], np.int32),
    })  # fmt: skip
    rows.close({})
    table = {"threshold": 0.4, "settings": settings, "shape": shape, "digest": ""}
    return Gallery(rows, table, pictures)


def dots(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (30, 20), (k % 256, 90, 40)) for k in range(n)]


@pytest.fixture(scope="module")
def flowers() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=70)


class TestPacked:
    @pytest.mark.parametrize("kind", TYPES)
    def test_arrays_come_back(self, kind):
        values = np.arange(12).reshape(3, 4)
        assert unpacked(packed(values, kind)).tolist() == list(range(12))

    def test_pictures_are_small_and_keep_their_shape(self):
        small = picture(Image.new("RGB", (1000, 500), "red"))
        again = Image.open(io.BytesIO(base64.b64decode(small["url"].partition(",")[2])))
        assert again.size == (small["width"], small["height"]) == (224, 112)
        assert np.abs(np.asarray(again.convert("RGB"), int) - (255, 0, 0)).max() < 6

    def test_small_pictures_are_not_enlarged(self):
        assert picture(Image.new("RGB", (10, 20)))["height"] == 20


class TestPairExplorer:
    def test_maps_travel_in_even_steps_and_without_silent_units(self):
        gal = gallery(dots(5))
        for i, image in enumerate(pair_explorer(gal).view.data["images"]):
            exact = gal.maps(i, i + 1)[0].numpy()
            found = np.zeros_like(exact)
            units = unpacked(image["units"])
            rows = unpacked(image["maps"]).reshape(len(units), 3, 3).astype(np.float32)
            found[units] = rows * image["step"]
            assert np.abs(found - exact).max() <= np.abs(exact).max() * 1.01 * 2**-16
            assert len(units) < len(exact)
            assert unpacked(image["embedding"]).tolist() == gal.embeddings[i].tolist()

    def test_an_image_without_any_active_unit(self):
        image = pair_explorer(gallery(dots(2), silent=1.1)).view.data["images"][0]
        assert image["maps"]["data"] == "" and image["step"] == 0

    def test_sixty_full_images_fit_into_a_page(self, flowers):
        explorer = pair_explorer(gallery(flowers, (256, 7, 7), silent=0.0))
        assert explorer.about == "Pair explorer, 60 of 70 images"
        for image in explorer.view.data["images"]:
            assert len(unpacked(image["maps"]).tobytes()) <= 30_000
        state = dependency_state([explorer], drop_defaults=False)
        assert 1e6 < len(json.dumps(state, default=str)) <= 3_000_000

    def test_fewer_are_shown_where_sixty_do_not_fit(self):
        explorer = pair_explorer(gallery(dots(40), (512, 14, 14), silent=0.0))
        shown = len(explorer.view.data["images"])
        assert 2 <= shown < 40 and size(explorer.view.data["images"]) <= STATE_LIMIT
        assert f"{shown} of the gallery’s 40 images" in explorer.view.data["note"]

    def test_more_than_fit_are_refused_where_they_were_asked_for(self):
        with pytest.raises(GalleryError, match=r"Choose about 10: gallery.widget\(indices="):
            pair_explorer(gallery(dots(20), (512, 14, 14), silent=0.0), indices=range(20))

    def test_maps_too_large_for_any_page_are_refused(self):
        with pytest.raises(GalleryError, match="a page holds"):
            pair_explorer(gallery(dots(2), (2048, 20, 20), silent=0.0))

    def test_the_choice_is_spread_over_the_classes(self, flowers):
        gal = gallery(flowers)
        shown = _spread(gal, 12, [])
        labels = flowers.labels[shown]
        assert sorted(set(shown)) == shown and len(shown) == 12
        assert np.ptp(np.bincount(labels, minlength=len(flowers.classes))) <= 1
        assert {1, 2} <= set(_spread(gal, 12, [1, 2, 1])) and len(_spread(gal, 12, [1, 2])) == 12
        assert _spread(gal, 70, []) == list(range(70))

    def test_names_tell_class_and_number(self, flowers):
        explorer = pair_explorer(gallery(flowers), indices=[5, 2])
        names = [image["name"] for image in explorer.view.data["images"]]
        assert names == [f"{flowers.classes[flowers.labels[i]]} {i}" for i in (5, 2)]

    def test_names_of_ones_own(self):
        explorer = pair_explorer(gallery(dots(3)), names=["same", "same", "other"], indices=[0, 1])
        assert explorer.controls["b"].options == (("same", 0), ("same", 1))
        assert explorer.controls["b"].index == 1

    def test_the_first_pair_is_by_the_gallerys_numbers(self):
        explorer = pair_explorer(gallery(dots(9)), indices=[8, 4, 2], pair=(2, 8))
        assert (explorer.view.a, explorer.view.b) == (2, 0)
        assert (explorer.controls["a"].index, explorer.controls["b"].index) == (2, 0)
        same = pair_explorer(gallery(dots(100)), pair=(99, 99))
        assert same.view.a == same.view.b == 59

    def test_controls_begin_as_the_view_does(self):
        explorer = pair_explorer(gallery(dots(3)))
        assert explorer.controls["threshold"].value == explorer.view.threshold == 0.4
        assert explorer.controls["opacity"].value == explorer.view.opacity

    @pytest.mark.parametrize("threshold", [0.39141521975398064, 0.07, 0.5, 1e-6, 0.9999])
    def test_the_threshold_is_a_step_of_its_slider(self, threshold):
        gal = gallery(dots(2))
        gal.threshold = threshold
        slider = pair_explorer(gal).controls["threshold"]
        steps = (threshold - slider.min) / slider.step
        assert abs(steps - round(steps)) < 1e-9
        assert 0 < slider.min <= slider.value == threshold <= slider.max < 1

    @pytest.mark.parametrize("wrong", [
        {"indices": [0]}, {"indices": [0, 0]}, {"indices": [0, 7]}, {"names": ["one"]},
        {"pair": (0, 9)}, {"pair": (0,)}, {"pair": (0, -1)}, {"indices": [0, 1], "pair": (0, 2)},
    ])  # fmt: skip
    def test_wrong_choices_are_refused(self, wrong):
        with pytest.raises(GalleryError):
            pair_explorer(gallery(dots(3)), **wrong)

    def test_a_comparison_of_ones_own_is_refused(self):
        with pytest.raises(GalleryError, match="my.own, which a page cannot compute"):
            pair_explorer(gallery(dots(3), settings={"comparison": "my.own"}))

    def test_a_gallery_without_its_images_is_refused(self, tmp_path):
        opened = Gallery.open(gallery(dots(3)).save(tmp_path / "gallery"))
        with pytest.raises(GalleryError, match="without its images"):
            pair_explorer(opened)

    def test_a_gallery_from_disk_gives_the_same(self, tmp_path):
        gal = gallery(dots(3))
        opened = Gallery.open(gal.save(tmp_path / "gallery"), images=dots(3))
        data, held = pair_explorer(opened).view.data, pair_explorer(gal).view.data
        for image, other in zip(data.pop("images"), held.pop("images"), strict=True):
            maps, others = (unpacked(x.pop("maps")) * x.pop("step") for x in (image, other))
            assert np.abs(maps - others).max() <= np.abs(others).max() * 2**-11  # halves on disk
            assert image == other
        assert data == held


class TestStill:
    def test_a_picture_stands_where_no_script_may_run(self):
        explorer = pair_explorer(gallery(dots(3)))
        explorer.view.a = 2
        data, about = explorer._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in data
        assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 300
        assert about["image/png"]["alt"] == explorer.about

    def test_the_text_names_no_address(self):
        explorer = pair_explorer(gallery(dots(3)))
        data, _ = explorer._repr_mimebundle_()
        assert repr(explorer) == data["text/plain"] == "Explorer('Pair explorer, 3 of 3 images')"
        assert not re.search("0x[0-9a-f]+", json.dumps(list(data)))

    def test_it_is_a_box_of_controls_and_a_view(self):
        explorer = pair_explorer(gallery(dots(3)))
        assert isinstance(explorer, Explorer) and explorer.children[1] is explorer.view
        assert all(c.description for c in explorer.controls.values())


class TestHtml:
    def test_one_file_that_names_no_other(self, tmp_path):
        file = to_html(gallery(dots(3)), tmp_path / "pairs.html", title="Two <by> two")
        text = file.read_text("utf-8")
        assert "<title>Two &lt;by&gt; two</title>" in text
        assert not re.search(r"\b(?:src|href)=(?!\"data:)|https?://|@import|\bimport\b", text)

    def test_names_cannot_leave_their_place(self, tmp_path):
        evil = "</script><script>alert(1)</script>"
        file = to_html(gallery(dots(2)), tmp_path / "pairs.html", names=[evil, "<!--"])
        text = file.read_text("utf-8")
        assert text.count("</script>") == 2 and "alert(1)" in text and "<!--" not in text

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(GalleryError, match="choose another place"):
            to_html(gallery(dots(2)), tmp_path / "file" / "pairs.html")


def test_modules_ask_nobody_and_depend_on_nothing():
    view = pair_explorer(gallery(dots(2))).view
    code = view._esm + view._css
    assert not re.search(r"https?:|\bimport\b|\bfetch\b|XMLHttpRequest|@import", code)
    assert code.count("export default") == 1 and len(code) < 40_000


def test_what_travels_changes_no_map_by_a_ten_thousandth():
    """The arithmetic of the page, in numpy, on what travels: against the gallery's own."""
    gal = gallery(dots(6), (64, 5, 5))
    images = pair_explorer(gal).view.data["images"]
    for i, j in [(0, 1), (4, 2), (3, 5)]:
        e = [torch.from_numpy(gal.embeddings[k : k + 1]).double() for k in (i, j)]
        v = gal.compare(*e).v1[0].numpy()
        units = unpacked(images[i]["units"])
        rows = unpacked(images[i]["maps"]).reshape(len(units), 5, 5).astype(float)
        found = np.tensordot(v[units], rows * images[i]["step"], 1)
        exact = gal.explain(i, j).raw[0]
        assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()
