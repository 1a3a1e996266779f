"""Grad-CAM of the plain distance, without the slope of the network's own decision."""

from siamcam_lib.explaining import ClosedForm


class Distance(ClosedForm):
    """The self map taken away from the shared one: row "distance" of `gradcam.coefficients`."""

    title = "Grad-CAM of the distance"
    source = "Livieris et al. 2023, doi:10.3390/jimaging9100224"
    limits = "What both pictures have equally cancels; equal pictures get blank maps."
