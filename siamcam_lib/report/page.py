"""The report as one page that needs nothing else, and pairs of pictures under their maps.

Every text that is not ours goes through `_name`, which escapes it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from siamcam_lib import plots
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Report
from siamcam_lib.explanation import Explanation, stretch
from siamcam_lib.files import shown, whole_file
from siamcam_lib.results import COLUMNS
from siamcam_lib.widgets.base import picture

if TYPE_CHECKING:
    from siamcam_lib.report.audit import Audit, ClassPair, Evidence, HardPair

ROWS = 30
"""Class pairs that are listed, worst first."""
SHOWN = 320
"""Longer side of a picture on the page, in pixels."""

_STYLE = """
:root { color-scheme: light dark; --quiet: light-dark(#59626b, #a5adb5);
  --rule: light-dark(#d5dade, #3c434a); --similar: light-dark(#0072b2, #5fb8ee);
  --dissimilar: light-dark(#b04a00, #f39a5c); }
body { max-width: 52rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: light-dark(#23292e, #e4e7ea); background: light-dark(#fff, #1b1f24);
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; }
.quiet, figcaption, caption { color: var(--quiet); font-size: 0.9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { max-width: 24rem; text-align: left; vertical-align: top; padding: 0.3rem 1.2rem 0.3rem 0;
  border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; border-radius: 3px; }
.pairs { display: grid; gap: 1.2rem 2rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 23rem), 1fr)); }
.pairs figure { margin: 0; } figcaption { margin-top: 0.4rem; overflow-wrap: anywhere; }
.pair + .pair { margin-top: 4px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: center; }
.pair img { width: 100%; }
.similar { color: var(--similar); } .dissimilar { color: var(--dissimilar); }
li { margin-bottom: 0.5rem; } img.chart { background: #fff; padding: 4px; box-sizing: border-box; }
.one { grid-template-columns: minmax(0, 34rem); }
@media (max-width: 30rem) { th, td { padding-right: 0.6rem; font-size: 0.9rem; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def pair_page(path: str | Path, ex: Explanation, names: Sequence[str], title: str) -> Path:
    """Write one explained pair, by whatever method, as a page that needs nothing else.

    Args:
        path: Of the page.
        ex: From `sc.explain`.
        names: Of both pictures.
        title: Of the page.

    Raises:
        EvaluationError: if it cannot be written.
    """
    words = f", threshold {ex.threshold:.3f}, explained by {_name(ex.method)}"
    spoken = (ex.decision, "dissimilar" if ex.decision == "similar" else "similar")
    figures = [f"<figure>{_pictures(ex, names)}</figure>"] + [
        f"<figure>{_maps(ex, names, kind)}<figcaption>{kind}: what speaks for “{side}”"
        "</figcaption></figure>"
        for kind, side in zip(("factual", "counterfactual"), spoken, strict=True)
    ]
    body = f'<p>{_verdict(ex)}{words}.</p><div class="pairs one">{"".join(figures)}</div>'
    return write(Path(path), title, body)


def write(path: Path, title: str, body: str) -> Path:
    """Write a page, whole or not at all; `body` is HTML, `title` is not.

    Raises:
        EvaluationError: if it cannot be written.
    """
    page = _PAGE.format(title=_name(title), style=_STYLE, body=body)
    try:
        with whole_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"The page cannot be written to {path} ({error}); choose another place."
        ) from error
    return path


def body(found: Audit) -> str:
    """The report as HTML, every name escaped."""
    images, report, rests = found.images, found.report, found.evidence
    notes = "".join(f"<li>{_name(note)}</li>" for note in images.notes)
    advice = [f"<li>{_name(check.advice)}</li>" for check in found.checks if check.fires]
    metrics = [(COLUMNS.get(name, name), f"{value:.3f}",
                "{:.3f} to {:.3f}".format(*report.intervals[name]))
               for name, value in report]  # fmt: skip
    return "\n".join([
        f"<p>{len(images)} pictures of {len(images.classes)} classes, {len(report.label)} pairs: "
        "each picture with one of its own class and one of another. A pair is judged dissimilar "
        f"from a dissimilarity y of {report.threshold:.3f} on. The numbers hold for pictures like "
        "these that the network was not trained on; on those it was trained on they flatter.</p>",
        f"<ul>{notes}</ul>" if notes else "",
        _table("Metrics with 95% intervals, by bootstrap, or exact where a metric is 1 or 0; "
               "precision and recall are means over both kinds of pair",
               ("", "value", "interval"), metrics),
        _chart(report),
        "<h2>What to do</h2>",
        f"<ul>{''.join(advice)}</ul>" if advice else "<p>No rule asks for a change.</p>",
        '<p class="quiet">Each follows from a measure by a rule; all rules stand below.</p>',
        "<h2>The most confident wrong judgements</h2>", _gallery(found.wrong, "No pair is wrong."),
        "<h2>The judgements nearest to the threshold</h2>", _gallery(found.doubtful, "None."),
        "<h2>Class by class</h2>", _classes(found.classes),
        "<h2>What the maps rest on</h2>",
        f"<p>Factual maps of {rests.pairs} pairs, by Grad-CAM. Evidence at the border, the outer "
        f"tenth on every side: {rests.times('border')}. In the centre, the middle half: "
        f"{rests.times('centre')}. Zero everywhere: {rests.blank:.1%} of the maps.</p>",
        _average(rests),
        "<h2>The rules</h2>",
        _table("What the advice follows from", ("measure", "advice is given if", ""),
               [(c.measure, c.rule, "given" if c.fires else "fine") for c in found.checks]),
        f'<p class="quiet">Images {images.fingerprint()[:16]}, network {found.digest[:16]}, seed '
        f"{found.seed}.</p>",
    ])  # fmt: skip


def _classes(rows: Sequence[ClassPair]) -> str:
    some = (
        f"the worst {ROWS} of {len(rows)}" if len(rows) > ROWS else f"all {len(rows)}, worst first"
    )
    cells = [
        (*row.classes, str(row.pairs), f"{row.accuracy:.3f}", f"{row.dissimilarity:.3f}")
        for row in rows[:ROWS]
    ]
    return _table(f"Pairs of two classes: {some}",
                  ("class", "and class", "pairs", "accuracy", "mean y"), cells)  # fmt: skip


def _table(caption: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    first = "".join(f'<th scope="col">{_name(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{_name(row[0])}</th>'
        + "".join(f"<td>{_name(text)}</td>" for text in row[1:]) + "</tr>"
        for row in rows
    )  # fmt: skip
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{_name(caption)}">'
        f"<table><caption>{_name(caption)}</caption>"
        f"<thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _gallery(pairs: Sequence[HardPair], none: str) -> str:
    if not pairs:
        return f"<p>{none}</p>"
    figures = [
        f"<figure>{_pictures(pair.explanation, pair.names)}"
        f"{_maps(pair.explanation, pair.names, 'factual')}"
        f"<figcaption>{_verdict(pair.explanation, 'rightly' if pair.right else 'wrongly')}"
        + "".join(f"<br><bdi>{_name(name)}</bdi>" for name in pair.names)
        + "</figcaption></figure>"
        for pair in pairs
    ]
    return (
        '<p class="quiet">Below each picture, coloured, is what speaks for the judgement, on one '
        f'colour scale for both.</p><div class="pairs">{"".join(figures)}</div>'
    )


def _verdict(ex: Explanation, how: str = "") -> str:
    judged = f"{how} judged {ex.decision}".strip()
    return f'<strong class="{ex.decision}">{judged}</strong>, y = {ex.dissimilarity:.3f}'


def _small(ex: Explanation) -> list[Image.Image]:
    """Both pictures, small enough for a page."""
    small = [image.copy() for image in ex.images]
    for image in small:
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return small


def _pictures(ex: Explanation, names: Sequence[str]) -> str:
    shown = [_image(image, name) for image, name in zip(_small(ex), names, strict=True)]
    return f'<div class="pair">{"".join(shown)}</div>'


def _maps(ex: Explanation, names: Sequence[str], kind: str) -> str:
    """Both pictures under their maps, on one colour scale."""
    small = _small(ex)
    sign = 1 if (ex.decision == "similar") == (kind == "factual") else -1
    heats = [
        np.maximum(sign * stretch(torch.from_numpy(raw), image.size), 0)
        for raw, image in zip(ex.raw, small, strict=True)
    ]
    top = max(float(heat.max()) for heat in heats)
    shown = []
    for image, heat, name in zip(small, heats, names, strict=True):
        what = f"{kind} map of {name}" + ("" if heat.any() else ", which is blank")
        shown.append(_image(plots.blend(image, heat, top), what))
    return f'<div class="pair">{"".join(shown)}</div>'


def _image(image: Image.Image, alt: str) -> str:
    made = picture(image, SHOWN)
    size = f'width="{made["width"]}" height="{made["height"]}"'
    return f'<img src="{made["url"]}" {size} alt="{_name(alt)}">'


def _chart(report: Report) -> str:
    buffer = BytesIO()
    with plt.rc_context():
        plots.use_style()
        axis = plots.scores(report)
        figure = axis.get_figure(root=True)
        assert figure is not None
        figure.savefig(buffer, format="png", dpi=150)
        plt.close(figure)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    alt = "Histogram of the dissimilarities of similar and dissimilar pairs, with the threshold"
    return f'<figure><img class="chart" src="{url}" alt="{alt}"></figure>'


def _average(rests: Evidence) -> str:
    """The mean map, over white."""
    heat = np.maximum(stretch(torch.from_numpy(rests.mean), (240, 240)), 0)
    drawn = plots.blend(Image.new("RGB", (240, 240), "white"), heat, float(heat.max()))
    return (
        f"<figure>{_image(drawn, 'mean factual map')}<figcaption>The mean factual map, every map "
        "counting alike and every picture stretched to a square.</figcaption></figure>"
    )


def _name(text: str) -> str:
    return escape(shown(text))
