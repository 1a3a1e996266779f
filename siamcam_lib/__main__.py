"""`python -m siamcam_lib`: the command `siamcam`, where its script is not on the path."""

from siamcam_lib.cli import main

if __name__ == "__main__":
    main(prog_name="siamcam")
