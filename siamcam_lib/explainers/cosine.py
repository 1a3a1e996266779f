"""Grad-CAM of the cosine between two embeddings."""

from siamcam_lib.explaining import ClosedForm


class Cosine(ClosedForm):
    """Row "cosine" of `siamcam_lib.gradcam.coefficients`."""

    title = "Grad-CAM of the cosine"
    source = "Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74, with the cosine as score"
    limits = "What both pictures share is damped by their cosine; equal pictures get blank maps."
