"""`python -m benchmarks`: what an explanation costs on top of the forward pass.

Every way explains the same pair; the ways take turns, so that whatever else the machine does hits
all of them alike. Printed, and written to ``benchmarks/out``, with the processor's name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import LayerGradCam
from cpuinfo import get_cpu_info
from pytorch_grad_cam import GradCAM as PytorchGradCAM
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchCAM
from tqdm.auto import tqdm

import siamcam_lib as sc

OUT = Path(__file__).parent / "out"


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
    layer = next(m for name, m in net.named_modules() if name == "backbone")
    captum = LayerGradCam(score, layer)

    def forward() -> object:
        with torch.inference_mode():
            return net(*pair.chunk(2))

    def closed_form() -> object:
        with torch.inference_mode():
            seen = sc.gradcam.project(net, net.feature_maps(pair))
            first, second = (
                sc.gradcam.Projected(seen.maps[i : i + 1], seen.embedding[i : i + 1])
                for i in (0, 1)
            )
            maps = sc.gradcam.pair_maps(net, first, second)
            return [(m.clamp_min(0), (-m).clamp_min(0)) for m in maps]

    def by_torchcam() -> object:
        with TorchCAM(score, target_layer=layer) as extractor:
            return extractor(0, score(pair))

    def by_captum() -> object:
        return captum.attribute(pair, target=0, attr_dim_summation=False)

    def by_pytorch_gradcam() -> object:
        with PytorchGradCAM(score, target_layers=[layer]) as cam:
            return cam(pair, targets=[lambda output: output.sum()])

    return {
        "forward pass only": forward,
        "closed form, both polarities": closed_form,
        "torchcam GradCAM, one polarity": by_torchcam,
        "captum LayerGradCam, one polarity": by_captum,
        "pytorch-grad-cam, one polarity": by_pytorch_gradcam,
    }


def measure(found: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in tqdm(range(rounds + 2), desc="rounds", leave=False):
        for name, way in found.items():
            start = time.perf_counter()
            way()
            if turn >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure both backbones and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    lines = [
        f"One pair, 224 × 224, float32, {torch.get_num_threads()} threads, "
        f"{get_cpu_info()['brand_raw']}, torch {torch.__version__}; "
        f"medians of {chosen.rounds} rounds",
        "",
        "| backbone | way | ms | × forward |",
        "| --- | --- | --- | --- |",
    ]
    for backbone in ("resnet50", "efficientnet_lite0"):
        net = sc.SiameseNet(backbone, pretrained=False).eval()
        found = measure(ways(net, torch.rand(2, 3, 224, 224)), chosen.rounds)
        base = found["forward pass only"]
        lines += [
            f"| {backbone} | {name} | {1e3 * seconds:.1f} | {seconds / base:.2f} |"
            for name, seconds in found.items()
        ]
    table = "\n".join(lines)
    print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "pair.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
