"""`siamcam fetch`: the photographs of the paper."""

from __future__ import annotations

from pathlib import Path

import click

from siamcam_lib.cli.frame import PATH, as_json, readable, tell, working

EXAMPLE = "\b\nExample:\n  siamcam fetch flowers"


@click.command(short_help="Download and verify the set NAME.", epilog=EXAMPLE)
@click.argument("name")
@click.option("--home", type=PATH, help="Folder to put the set's folder in; by default the cache.")
@as_json
def fetch(name: str, home: Path | None, as_json: bool) -> None:
    """Download the set NAME, verify every file and put it in place.

    NAME is flowers, skin_cancer or airbnb. A cut download is resumed.
    """
    with working() as watched:
        if not watched:
            click.echo(readable(f"fetching and verifying {name}"), err=True)
        import siamcam_lib as sc

        folder = sc.datasets.fetch(name, home=home, progress=watched)
    tell({"name": name, "folder": str(folder)}, as_json, lambda: str(folder))
