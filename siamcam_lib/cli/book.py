"""`siamcam book`: run the chapters and build the site."""

from __future__ import annotations

from pathlib import Path

import click

from siamcam_lib.cli.frame import PATH, as_json, seed, tell, working

EXAMPLE = "\b\nExample:\n  siamcam book --data photos"


@click.command(short_help="Run the chapters on DATA and build the pages.", epilog=EXAMPLE)
@click.option("--data", default="auto", show_default=True, help="auto, scenes, real, or a folder.")
@click.option("--profile", type=click.Choice(["quick", "full"]), default="quick", show_default=True)
@click.option("--root", type=PATH, default=Path(), help="Folder that holds _toc.yml; by default .")
@seed
@as_json
def book(data: str, profile: str, root: Path, seed: int, as_json: bool) -> None:
    """Run every chapter on DATA and build the pages, as `make book` does.

    To be called in a copy of the project, where the chapters are. What has not changed is not run
    again.
    """
    with working():
        from siamcam_lib.book.__main__ import main

        code = main([f"--root={root}", f"--data={data}", f"--profile={profile}", f"--seed={seed}"])
    if code:
        click.get_current_context().exit(code)
    site = root / "_build" / "html"
    tell({"site": str(site)}, as_json, lambda: f"{site} is built")
