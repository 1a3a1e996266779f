"""`siamcam train`: a folder of class folders in, a calibrated network out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from siamcam_lib.cli.frame import (
    PATH,
    as_json,
    loaded,
    metrics,
    seed,
    skip,
    tell,
    working,
    writable,
)

EXAMPLE = """\b
Examples:
  siamcam train photos -o model.safetensors
  torchrun --nproc-per-node=2 -m siamcam_lib train photos -o model.safetensors --finetune
  srun --kill-on-bad-exit=1 siamcam train photos -o model.safetensors --finetune
"""


@click.command(short_help="Learn from a folder what is similar.", epilog=EXAMPLE)
@click.argument("folder")
@click.option("-o", "--output", type=PATH, required=True, help="Weights file, .safetensors.")
@seed
@click.option("--finetune", is_flag=True, help="Train the backbone too; wants a GPU.")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="10, or 8 with --finetune.")
@click.option("--backbone", default="efficientnet_lite0", show_default=True, help="By its name.")
@click.option("--image-size", type=click.IntRange(32, 2048), metavar="N",
              help="Side of pictures in pixels; 224, or 320 with five looks.")  # fmt: skip
@click.option("--looks", type=click.Choice(["1", "5"]), default="1", show_default=True,
              help="5: also at the four corners; takes five times as long.")  # fmt: skip
@click.option("--checkpoints", type=PATH, help="Folder to resume from after an interruption.")
@skip
@as_json
def train(
    folder: str, output: Path, seed: int, finetune: bool, epochs: int | None, backbone: str,
    image_size: int | None, looks: str, checkpoints: Path | None, skip: bool, as_json: bool,
) -> None:  # fmt: skip
    """Learn from FOLDER what counts as similar: two pictures of one class.

    FOLDER holds one folder of pictures for each class; a name such as scenes/flowers does too. It
    is split into training, validation and test parts; the metrics are those of the test part, each
    with its 95% interval.

    Processes that torchrun or srun starts with this command train together: each on its share of
    the batches, a GPU for each where there are GPUs. The first of them writes and reports.
    """
    writable(output, "weights (safetensors)", ".safetensors")
    with working():
        images = loaded(folder, skip)  # before torch is loaded: a wrong path is told at once
        import siamcam_lib as sc
        from siamcam_lib.processes import processes, step

        ours = processes()
        step(f"splitting {len(images)} images", ours.first)
        parts = sc.pairs.split(images, seed)
        size = image_size or {"1": 224, "5": 320}[looks]
        net = sc.SiameseNet(backbone, image_size=size, looks=int(looks))
        recipe = sc.FINETUNE if finetune else sc.FROZEN
        recipe = replace(recipe, epochs=epochs or recipe.epochs)
        fit = sc.fit(net, parts, seed, finetune=finetune, recipe=recipe, folder=checkpoints)
        if not ours.first:
            return
        net.save(output)
        bar = step(f"judging {len(parts.test)} test images")
        report = sc.evaluate(net, sc.pairs.sample(parts.test, seed), seed=seed, progress=bar)
    sizes = {name: len(getattr(parts, name)) for name in ("train", "val", "test")}
    record = {
        "format": "siamcam-training", "version": 1, "model": str(output), "images": images.name,
        "digest": images.fingerprint(), "parts": sizes, "seed": seed, "finetune": finetune,
        "epochs": len(fit.history), "resumed_at": fit.resumed_at, "seconds": fit.seconds,
        "processes": ours.count, "threshold": fit.threshold, "test_pairs": len(report.label),
        "metrics": metrics(report),
    }  # fmt: skip
    tell(record, as_json, lambda: f"{report}\n{output} written after {fit.seconds:.0f} s")
