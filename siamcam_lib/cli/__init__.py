"""The command `siamcam`: the library's public names for whoever works in a terminal.

Taught in the chapter on your own photographs. Results go to stdout, everything else to stderr.
Exit codes: 0 fine, 1 what the library refuses (one message, no traceback), 2 wrong usage, 130
stopped by Ctrl-C. The library itself, which takes seconds to load, is imported inside the commands.
"""

import click

from siamcam_lib.cli.book import book
from siamcam_lib.cli.embed import embed
from siamcam_lib.cli.evaluate import evaluate
from siamcam_lib.cli.explain import explain
from siamcam_lib.cli.fetch import fetch
from siamcam_lib.cli.frame import Group
from siamcam_lib.cli.gallery import gallery
from siamcam_lib.cli.train import train

EXAMPLES = """\b
Examples:
  siamcam explain a.jpg b.jpg -o out                  two photographs, at once
  siamcam train photos -o model.safetensors           a folder of class folders
  siamcam evaluate new --model model.safetensors -o report.html
"""


@click.group(cls=Group, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="siamcam_lib", prog_name="siamcam")
def main() -> None:
    """How alike two photographs are, and why."""


for command in (explain, train, evaluate, gallery, embed, fetch, book):
    main.add_command(command)
