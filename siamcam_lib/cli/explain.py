"""`siamcam explain`: two pictures in; their score, the reasons for it and a page out.

`siamcam_lib.record` says what ``explanation.json`` holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from siamcam_lib.cli.frame import PATH, as_json, model, readable, tell, working, writable
from siamcam_lib.cli.network import network
from siamcam_lib.errors import DataError

if TYPE_CHECKING:
    from siamcam_lib import Explanation

FILES = ("explanation.png", "explanation.json", "explanation.html")

EXAMPLE = """\b
Examples:
  siamcam explain a.jpg b.jpg -o untrained
  siamcam explain a.jpg b.jpg -o trained --model model.safetensors --method occlusion
"""


@click.command(short_help="How alike two pictures are, and why.", epilog=EXAMPLE)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write to.")
@model
@click.option("--method", default="gradcam", show_default=True, help="An explainer, by its name.")
@as_json
def explain(a: Path, b: Path, output: Path, model: Path | None, method: str, as_json: bool) -> None:
    """Say how alike the pictures A and B are, and show why.

    Writes explanation.png, explanation.json and explanation.html, a page to send on. Without a
    model the pictures are compared by ImageNet features: at once, but not calibrated.
    """
    if output.suffix in {Path(name).suffix for name in FILES} and not output.exists():
        raise DataError(
            f"{output} is to be a folder, for {', '.join(FILES)}, but is called like a file: "
            f"call it {output.stem}."
        )
    for name in FILES:
        writable(output / name)
    with working():
        from siamcam_lib.datasets.images import as_image

        # before torch is loaded: a wrong path is told at once
        pictures = [as_image(a), as_image(b)]
        import siamcam_lib as sc
        from siamcam_lib.explainers import get
        from siamcam_lib.processes import step

        explainer = get(method)
        seeing = network(model)
        bar = step(f"explaining by {explainer.name}")
        pair = sc.explain(seeing, *pictures, method=explainer, progress=bar)
        found = cast(sc.Explanation, pair)
        record = described(found, (a, b), seeing, model)
        step(f"writing {len(FILES)} files")
        write(output, found, record, seeing)
    written = {"written": [str(output / name) for name in FILES]}

    def text() -> str:
        doubt = "" if model else ", which is not calibrated"
        score = f"dissimilarity {found.dissimilarity:.3f}, dissimilar from {found.threshold:.3f} on"
        return "\n".join([f"{found.decision}: {score}{doubt}", *written["written"]])

    tell(record | written, as_json, text)


def described(
    found: Explanation, files: tuple[Path, Path], seeing: Any, model: Path | None
) -> dict[str, Any]:
    """What ``explanation.json`` holds."""
    from importlib.metadata import version

    import torch

    from siamcam_lib.embedder import as_explainable
    from siamcam_lib.record import FORMAT, VERSION
    from siamcam_lib.widgets.base import packed

    sides = dict(zip("ab", range(2), strict=True))
    return {
        "format": FORMAT, "version": VERSION,
        "images": {
            side: {
                "file": str(files[i]), "sha256": hashlib.sha256(files[i].read_bytes()).hexdigest(),
                "width": found.images[i].width, "height": found.images[i].height,
            }
            for side, i in sides.items()
        },
        "model": {
            "file": model and str(model), "digest": as_explainable(seeing).digest(),
            "calibrated": model is not None,
        },
        "dissimilarity": found.dissimilarity, "similarity": found.similarity,
        "threshold": found.threshold, "decision": found.decision,
        "method": found.method, "polarity": found.polarity,
        "raw": {
            side: {"shape": found.raw[i].shape} | packed(found.raw[i], "float32")
            for side, i in sides.items()
        },
        "blank": {kind: dict(zip("ab", both, strict=True)) for kind, both in found.blank.items()},
        "versions": {"siamcam_lib": version("siamcam_lib"), "torch": torch.__version__},
    }  # fmt: skip


def write(folder: Path, found: Explanation, record: dict[str, Any], seeing: Any) -> None:
    """The three files, each whole or not at all.

    Raises:
        ExplanationError: if one cannot be written.
    """
    import matplotlib.pyplot as plt

    from siamcam_lib import plots
    from siamcam_lib.errors import ExplanationError
    from siamcam_lib.files import whole_file

    png, table, page = (folder / name for name in FILES)
    try:
        with plt.rc_context(), whole_file(png) as temporary:
            plots.use_style()
            figure = found.plot()
            figure.savefig(temporary, format="png", dpi=150)
            plt.close(figure)
        with whole_file(table) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise ExplanationError(
            f"The explanation cannot be written to {folder} ({error}); choose another folder."
        ) from error
    # a page is sent on: it tells no folders
    names = [readable(Path(record["images"][side]["file"]).name) for side in "ab"]
    write_page(page, found, names, seeing, record["model"]["calibrated"])


def write_page(
    path: Path, found: Explanation, names: list[str], seeing: Any, calibrated: bool
) -> None:
    """The pair explorer, or still pictures where the method is none that it computes."""
    from siamcam_lib import Gallery
    from siamcam_lib.report import pair_page

    title = f"{names[0]} and {names[1]}: {found.decision}"
    title += "" if calibrated else " (threshold not calibrated)"
    if found.method == "gradcam":
        made = Gallery.embed(seeing, found.images, progress=False)
        made.widget(names=names, pair=(0, 1)).to_html(path, title=title)
    else:
        pair_page(path, found, names, title)
