"""What every command does alike: errors and exit codes, one JSON object, places to write to."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from siamcam_lib.errors import DataError, ModelError, SiamcamError
from siamcam_lib.files import shown as readable

if TYPE_CHECKING:
    from siamcam_lib.datasets import ImageSet

INTERRUPTED = 130
PATH = click.Path(path_type=Path)


class ModelFile(click.Path):
    """A model's file; that there is none is told before torch is loaded."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: D102
        if not os.path.isfile(value):
            raise ModelError(f"There is no model {value}; `siamcam train` writes one.")
        return super().convert(value, param, ctx)


MODEL = ModelFile(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
SEEDS = click.IntRange(0, 2**32 - 1)  # what every generator takes
seed = click.option("--seed", type=SEEDS, default=0, metavar="N", show_default=True,
                    help="The same seed, the same result.")  # fmt: skip
model = click.option("--model", type=MODEL, help="What `siamcam train` wrote.")
skip = click.option("--skip-unreadable", "skip", is_flag=True,
                    help="Leave out pictures that cannot be read, and name them.")  # fmt: skip


class Group(click.Group):
    """Commands whose refusals are one message and exit code 1, and that end quietly on Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads has had enough, which click knows to take
        except (SiamcamError, OSError) as error:
            raise click.ClickException(readable(" ".join(str(error).split()))) from error
        except KeyboardInterrupt:
            click.echo("\nStopped.", err=True)
            ctx.exit(INTERRUPTED)


@contextlib.contextmanager
def working() -> Iterator[bool]:
    """Whatever the work prints goes to stderr; gives whether a person watches its progress."""
    import matplotlib

    matplotlib.use("agg")  # no window, whatever the machine
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.stderr.isatty()


def tell(record: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """The result, for machines or for people: lines, in which names are `readable` already."""
    if as_json:
        click.echo(json.dumps(record, indent=1, allow_nan=False))
    else:
        click.echo("\n".join(readable(line) for line in text().split("\n")))


def loaded(folder: str, skip: bool = False, *, decode: bool = True) -> ImageSet:
    """The pictures of FOLDER; the first process says on stderr what was found and left out.

    Args:
        folder: Of class folders, or the name of a set.
        skip: Leave out what cannot be read.
        decode: Of a folder, decode every picture now, so that truncated ones are found.
    """
    import siamcam_lib as sc

    options = {}
    named = folder in sc.datasets.names()  # drawn, or checked on the way here
    if not named or (skip and not folder.startswith("scenes/")):
        options["on_bad"] = "skip" if skip else "raise"
        options["check"] = "full" if decode or skip else "header"
    images = sc.datasets.load(folder, **options)

    from siamcam_lib.processes import processes  # with torch, which takes seconds

    for note in images.notes if processes().first else ():
        click.echo(readable(note), err=True)
    return images


def writable(path: Path, kind: str = "", *extensions: str) -> Path:
    """`path`, if a file can be written there: found out before the work, not after it.

    Args:
        path: As it was given; a name without an extension is taken as it is.
        kind: What is written, in words.
        extensions: Of such files, the usual one first; any other would mislead.

    Raises:
        DataError: if it has another extension, is a folder, or its own folder cannot be made or
            written.
    """
    if extensions and path.suffix.lower() not in ("", ".", *extensions):
        stem = path.with_suffix("") if path.suffix[1:].isalpha() else path  # .001 is of the name
        raise DataError(
            f"{path} is no name for {kind}, which is what is written: "
            f"call it {stem.name}{extensions[0]}, or give a name without an extension."
        )
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name a file to write.")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            return path
        reason = f"{above} is {'not writable' if above.is_dir() else 'a file'}"
    except OSError as error:
        reason = str(error)
    raise DataError(f"{path} cannot be written ({reason}); choose another place.")


def metrics(report: Any) -> dict[str, dict[str, float]]:
    """The metrics of a `Report` with their intervals, as JSON takes them."""
    limits = ("low", "high")
    return {
        name: {"value": value} | dict(zip(limits, report.intervals[name], strict=True))
        for name, value in report
    }
