"""What a picture has of its partner."""

from siamcam_lib.explaining import ClosedForm


class Shared(ClosedForm):
    """The product of each place with the partner's embedding; see `gradcam.shared_map`."""

    title = "shared evidence"
    source = "Stylianou et al. 2019, doi:10.1109/WACV.2019.00220"
    limits = "Behind a ReLU it is nearly never negative: it cannot show what speaks against."
