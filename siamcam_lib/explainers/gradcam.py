"""Grad-CAM of the pair's own score, both polarities at once: what this book is about."""

from siamcam_lib.explaining import ClosedForm


class GradCAM(ClosedForm):
    """The gradient of the similarity along each feature map; see `siamcam_lib.gradcam.pair_maps`.

    Chapter 4 derives it. The map of the dissimilarity is its negative.
    """

    title = "Grad-CAM"
    source = "Livieris et al. 2023, doi:10.3390/jimaging9100224"
    limits = "What both pictures have equally is damped or cancels; equal pictures get blank maps."
