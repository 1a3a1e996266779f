"""What a large collection costs: pictures looked at a second, a million vectors searched."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

import siamcam_lib as sc
from benchmarks.timing import machine, medians
from siamcam_lib.allocator import memory_kept
from siamcam_lib.embedder import squares
from siamcam_lib.shards import blocks, shard_name, write_table

EMBED, SIDE, PER = 256, 7, 1024
SETTINGS = {"comparison": "siamese", "unit": True, "slope": 4.0, "offset": -2.0}

SEARCHED = """
import json, sys, time
import faiss, numpy as np, psutil
from siamcam_lib import Gallery
queries = json.loads(sys.argv[2])
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
gallery = Gallery.open(sys.argv[1])
gallery.nearest(queries[0], 10)
opened = time.perf_counter() - start
memory, times = (process.memory_info().rss - before) / 2**20, []
for query in queries:
    start = time.perf_counter()
    found = gallery.nearest(query, 10)
    middle = time.perf_counter()
    for other in found.index:
        gallery.explain(query, int(other))
    times.append([middle - start, time.perf_counter() - middle])
both = [search + explain for search, explain in times]
print(json.dumps([opened, memory, *np.median(times, axis=0), np.median(both)]))
"""
"""Run in a process of its own: opens, asks once, then times searches and ten explanations each."""


def table(pictures: int, vectors: int, rounds: int) -> str:
    """All of it, as a Markdown table."""
    lines = [
        f"{machine()}",
        "",
        "| what | measured |",
        "| --- | --- |",
        *_throughput(pictures, rounds),
        *_searched(vectors),
    ]
    return "\n".join(lines)


def _throughput(count: int, rounds: int) -> list[str]:
    """JPEG files into a gallery, beside the bare backbone on the same pictures decoded ahead."""
    net = sc.SiameseNet().eval()
    scenes = sc.datasets.load("scenes/flowers", n=100, size=320)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{k}.jpg" for k in range(count)]
        for k, path in enumerate(paths):
            scenes.image(k % 100).rotate(k // 100).save(path, quality=90)
        ahead = torch.cat([squares([Image.open(p).convert("RGB")], 224) for p in paths]).split(32)
        turn = iter(range(10**9))

        def bare() -> None:
            with torch.inference_mode():
                for part in ahead:
                    net.feature_maps(part)

        def ours() -> None:
            with memory_kept():
                for part in ahead:
                    net.look(part)

        def embed() -> None:
            place = Path(folder) / f"gallery{next(turn)}"
            sc.Gallery.embed(net, paths, folder=place, progress=False)

        found = medians({"bare": bare, "ours": ours, "embed": embed}, rounds)
    speed = {name: count / seconds for name, seconds in found.items()}
    return [
        f"| bare backbone (EfficientNet-Lite0, 224 × 224) by PyTorch, {count} pictures decoded "
        "ahead, 32 at a time | "
        f"{speed['bare']:.1f} a second |",
        "| the same by `net.look`: ONNX Runtime, four at a time, a thread each | "
        f"{speed['ours']:.1f} a second |",
        "| the same JPEG files, 320 × 320, decoded, looked at, projected and written | "
        f"{speed['embed']:.1f} a second, {speed['embed'] / speed['bare']:.2f} and "
        f"{speed['embed'] / speed['ours']:.2f} of those |",
    ]


def _searched(count: int) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "gallery"
        write_sparse(folder, count)
        random = np.random.default_rng(1)
        queries = random.choice(count, 30, replace=False).tolist()
        start = time.perf_counter()
        gallery = sc.Gallery.open(folder)
        found = [gallery.nearest(query, 10).index for query in queries]
        made = time.perf_counter() - start
        exact = _exact(gallery.embeddings, queries)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
        for index in (*found, queries):
            _write_maps(folder, index, random)
        size = sum(f.stat().st_size for f in folder.iterdir())
        beside = folder / "neighbours.safetensors"
        kept = beside.stat().st_size if beside.exists() else 0
        del gallery
        runs = [_run(folder, queries) for _ in range(3)]
    opened, memory, search, explain, both = (
        statistics.median(r[i] for r in runs) for i in range(5)
    )
    return [
        f"| a gallery of {count:,} images, {EMBED} × {SIDE} × {SIDE} | {size / 1e9:.1f} GB, "
        f"{kept / 1e6:.0f} MB of it to search in |",
        f"| opened and searched for the first time (30 searches) | {made:.1f} s |",
        f"| opened again and searched once | {opened:.2f} s, {memory:.0f} MiB |",
        f"| gal.nearest(i, 10) | {1e3 * search:.1f} ms, recall {recall:.4f} |",
        f"| its ten best explained | {1e3 * explain:.1f} ms |",
        f"| both | {1e3 * both:.1f} ms |",
    ]


def _run(folder: Path, queries: list[int]) -> list[float]:
    command = [sys.executable, "-c", SEARCHED, str(folder), json.dumps(queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _exact(vectors: np.ndarray, queries: list[int]) -> list[np.ndarray]:
    """The ten nearest by angle, by one product of matrices."""
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    product = scaled @ scaled[queries].T  # (n, q)
    product[queries, np.arange(len(queries))] = -np.inf
    return [np.argpartition(-column, 10)[:10] for column in product.T]


def write_sparse(folder: Path, count: int, seed: int = 0) -> None:
    """A gallery of clustered vectors whose maps are holes: they take no room on most disks."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    centres = random.standard_normal((1000, EMBED), np.float32)
    for number, (start, stop) in enumerate(blocks(count, PER)):
        n = stop - start
        noise = random.standard_normal((n, EMBED), np.float32)
        vectors = np.maximum(centres[random.integers(1000, size=n)] + 0.7 * noise, 0)
        rows = {
            "embedding": vectors, "key": np.zeros((n, 2, 16), np.uint8),
            "scale": np.ones(n, np.float32), "size": np.full((n, 2), 224, np.int32),
        }  # fmt: skip
        _write_shard(folder / shard_name(number), rows, (n, EMBED, SIDE, SIDE))
    write_table(folder, count, [shard_name(k) for k in range(-(-count // PER))], {
        "threshold": 0.5, "settings": SETTINGS, "shape": (EMBED, SIDE, SIDE), "digest": "",
    })  # fmt: skip


def _write_shard(path: Path, rows: dict[str, np.ndarray], maps: tuple[int, ...]) -> None:
    """A safetensors file: the length of its header, the header, one tensor after the other."""
    codes = {"float32": "F32", "int32": "I32", "uint8": "U8"}
    header, end = {}, 0
    for name, values in rows.items():
        ends = [end, end := end + values.nbytes]
        header[name] = {"dtype": codes[str(values.dtype)], "shape": values.shape,
                        "data_offsets": ends}  # fmt: skip
    ends = [end, end := end + 2 * int(np.prod(maps))]
    header["maps"] = {"dtype": "F16", "shape": maps, "data_offsets": ends}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in rows.values():
            file.write(values.tobytes())
        file.truncate(8 + len(text) + end)


def _write_maps(folder: Path, index: list[int], random: np.random.Generator) -> None:
    """Random maps for some images, in place."""
    for i in index:
        path = folder / shard_name(int(i) // PER)
        with safe_open(path, framework="numpy") as file:
            rows = file.get_slice("maps").get_shape()[0]
        size = EMBED * SIDE * SIDE * 2
        with open(path, "rb+") as file:
            file.seek(os.path.getsize(path) - (rows - int(i) % PER) * size)
            file.write(random.random(size // 2, np.float32).astype(np.float16).tobytes())
