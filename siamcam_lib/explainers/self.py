"""What makes a picture's own embedding long, whoever its partner is: a control."""

from siamcam_lib.explaining import ClosedForm


class Self(ClosedForm):
    """The product of each place with the picture's own embedding; see `gradcam.self_map`."""

    title = "self map"
    source = "one half of the identity in chapter 4"
    paired = False
    limits = "It knows nothing of the partner: what scores no better explains no pair."
