#!/bin/sh
# The same on one machine without a cluster: as many processes as it has GPUs, or as you like on CPUs.
#   sh examples/torchrun.sh photos photos.gallery
set -eu
exec torchrun --nproc-per-node="${PROCESSES:-2}" -m siamcam_lib embed "$1" -o "$2"
