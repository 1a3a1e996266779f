"""`siamcam evaluate`: what a network gets right and wrong on a folder, why, and what to do."""

from __future__ import annotations

from pathlib import Path

import click

from siamcam_lib.cli.frame import (
    MODEL,
    PATH,
    as_json,
    loaded,
    readable,
    seed,
    skip,
    tell,
    working,
    writable,
)

EXAMPLE = "\b\nExample:\n  siamcam evaluate new-photos --model model.safetensors -o report.html"


@click.command(short_help="Judge a network on a folder; a report page.", epilog=EXAMPLE)
@click.argument("folder")
@click.option("--model", type=MODEL, required=True, help="What `siamcam train` wrote.")
@click.option("-o", "--output", type=PATH, required=True, help="Page to write, .html.")
@seed
@skip
@as_json
def evaluate(folder: str, model: Path, output: Path, seed: int, skip: bool, as_json: bool) -> None:
    """Judge a network on FOLDER, a folder of class folders, and write a report page.

    The page holds the metrics with their intervals, what to do by stated rules, the hardest pairs
    explained, every class against every other, and what the maps rest on. Take pictures that the
    network was not trained on: the command cannot know, and the numbers would flatter.
    """
    writable(output, "a page (HTML)", ".html", ".htm")
    with working():
        import siamcam_lib as sc
        from siamcam_lib.processes import step
        from siamcam_lib.report import audit

        net = sc.SiameseNet.load(model)
        images = loaded(folder, skip)
        found = audit(net, images, seed=seed, progress=step(f"judging {len(images)} images"))
        step("writing the page")
        found.to_html(output)
    record = found.record() | {"model": str(model), "page": str(output)}
    advice = [readable(f"- {check.advice}") for check in found.checks if check.fires]

    def text() -> str:
        said = advice or ["No rule asks for a change."]
        return "\n".join([str(found.report), *said, f"{output} is written"])

    tell(record, as_json, text)
