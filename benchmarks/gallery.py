"""What explanations cost once images have been looked at: all pairs, one pair, from disk."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import siamcam_lib as sc
from benchmarks.timing import machine, medians
from siamcam_lib.embedder import SiameseEmbedder
from siamcam_lib.shards import ShardWriter, blocks

EMBED, SIDE = 256, 7

OPENED = """
import json, sys, time
import psutil
from siamcam_lib import Gallery
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
gallery = Gallery.open(sys.argv[1])
ex = gallery.explain(7, len(gallery) - 8)
print(json.dumps([time.perf_counter() - start, (process.memory_info().rss - before) / 2**20]))
"""
"""Run in a process of its own: opens a gallery, explains a pair; seconds and MiB it took."""


def table(images: int, on_disk: int, rounds: int) -> str:
    """All of it, as a Markdown table."""
    net = sc.SiameseNet("resnet50", pretrained=False).eval()
    lines = [
        f"ResNet-50, 224 × 224, {EMBED} × {SIDE} × {SIDE}, {machine()}",
        "",
        "| what | measured |",
        "| --- | --- |",
        *_all_pairs(net, images, rounds),
        *_from_disk(on_disk),
    ]
    return "\n".join(lines)


def _all_pairs(net: sc.SiameseNet, images: int, rounds: int) -> list[str]:
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 255, (224, 224, 3), np.uint8)) for _ in range(images)
    ]
    # Forward passes and projections batch by batch in turns, as in Gallery.embed.
    seeing = SiameseEmbedder(net)
    forward = project = 0.0
    for start, stop in blocks(images, 32):
        begin = time.perf_counter()
        seen = seeing.see(pictures[start:stop])
        middle = time.perf_counter()
        seen.project()
        project += time.perf_counter() - middle
        forward += middle - begin
    gallery = sc.Gallery.embed(net, pictures, progress=False)

    def stream() -> int:
        return sum(tile.maps.size for tile in gallery.all_pairs())

    found = medians({"tiles": stream, "one": lambda: gallery.explain(3, images - 4)}, rounds)
    pairs = images**2
    return [
        f"| {images} forward passes | {forward:.2f} s |",
        f"| their projections | {project:.2f} s, {project / forward:.1%} |",
        f"| all {pairs:,} ordered pairs | {found['tiles']:.3f} s, "
        f"{1e6 * found['tiles'] / pairs:.2f} µs each, {pairs / found['tiles'] / 1e6:.1f} million "
        f"a second, {found['tiles'] / forward:.1%} |",
        f"| projections and all pairs | {(project + found['tiles']) / forward:.1%} |",
        f"| gal.explain(i, j), 224 × 224 | {1e3 * found['one']:.2f} ms |",
    ]


def _from_disk(count: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        writer = ShardWriter(Path(folder) / "gallery")
        for start, stop in blocks(count, 4096):
            n = stop - start
            maps = random.random((n, EMBED, SIDE, SIDE), np.float32).astype(np.float16)
            writer.add({
                "maps": maps, "scale": np.ones(n, np.float32),
                "embedding": random.random((n, EMBED), np.float32),
                "size": np.full((n, 2), 224, np.int32),
            })  # fmt: skip
        settings = {"comparison": "siamese", "unit": True, "slope": 4.0, "offset": -2.0}
        writer.close({
            "threshold": 0.5, "settings": settings, "shape": (EMBED, SIDE, SIDE), "digest": "",
        })  # fmt: skip
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        runs = [_opened(Path(folder) / "gallery") for _ in range(5)]
    seconds = statistics.median(run[0] for run in runs)
    memory = statistics.median(run[1] for run in runs)
    return [
        f"| {count:,} images on disk | {size / 1e9:.2f} GB |",
        f"| opened, and one pair explained, by a new process | {1e3 * seconds:.1f} ms, "
        f"{memory:.0f} MiB |",
    ]


def _opened(folder: Path) -> list[float]:
    command = [sys.executable, "-c", OPENED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
