"""What one pair's explanation costs on top of the forward pass, beside other libraries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM as PytorchGradCAM
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchCAM

import siamcam_lib as sc
from benchmarks.timing import machine, medians
from siamcam_lib.embedder import SiameseEmbedder
from siamcam_lib.heads import PooledHead, PooledSeen


class _PairScore(nn.Module):
    """A batch of 2B images → (B, 1) dissimilarity: the form in which the libraries take a pair."""

    def __init__(self, net: sc.SiameseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor) -> Tensor:
        return self.net(*batch.chunk(2)).unsqueeze(-1)


def ways(net: sc.SiameseNet, pair: Tensor) -> dict[str, Callable[[], object]]:
    """What is compared: name → one explanation of the pair (2, 3, S, S)."""
    score = _PairScore(net)
    captum = LayerGradCam(score, net.backbone)
    first, second = torch.tensor([0]), torch.tensor([1])

    def forward() -> object:
        with torch.inference_mode():
            return net(*pair.chunk(2))

    def ours() -> object:
        with torch.inference_mode():
            head = PooledHead(*(p.detach() for p in net.projection.parameters()))
            seen = PooledSeen(net.feature_maps(pair), head)
            e = seen.embedding
            compared = SiameseEmbedder(net).compare(e[first], e[second])
            maps = seen.along(first, compared.v1), seen.along(second, compared.v2)
            return [(m.clamp_min(0), (-m).clamp_min(0)) for m in maps]

    def by_torchcam() -> object:
        with TorchCAM(score, target_layer=net.backbone) as extractor:
            return extractor(0, score(pair))

    def by_captum() -> object:
        return captum.attribute(pair, target=0, attr_dim_summation=False)

    def by_pytorch_gradcam() -> object:
        with PytorchGradCAM(score, target_layers=[net.backbone]) as cam:
            return cam(pair, targets=[lambda output: output.sum()])

    return {
        "forward pass only": forward,
        "siamcam, both images, both polarities": ours,
        "torchcam GradCAM, one polarity": by_torchcam,
        "captum LayerGradCam, one polarity": by_captum,
        "pytorch-grad-cam, one polarity": by_pytorch_gradcam,
    }


def table(rounds: int) -> str:
    """Both backbones, as a Markdown table."""
    lines = [
        f"One pair, 224 × 224, float32, {machine()}; medians of {rounds} rounds",
        "",
        "| backbone | way | ms | × forward |",
        "| --- | --- | --- | --- |",
    ]
    for backbone in ("resnet50", "efficientnet_lite0"):
        net = sc.SiameseNet(backbone, pretrained=False).eval()
        found = medians(ways(net, torch.rand(2, 3, 224, 224)), rounds)
        base = found["forward pass only"]
        lines += [
            f"| {backbone} | {name} | {1e3 * seconds:.1f} | {seconds / base:.3f} |"
            for name, seconds in found.items()
        ]
    return "\n".join(lines)
