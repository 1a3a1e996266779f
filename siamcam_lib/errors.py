"""The exceptions of the library: every one says what was given, what was expected and what to do.

All derive from `SiamcamError`, so one ``except sc.errors.SiamcamError`` catches whatever the
library refuses; the second base is the built-in exception a Python programmer would expect.
"""


class SiamcamError(Exception):
    """Base of everything the library raises on purpose."""


class DataError(SiamcamError, ValueError):
    """A data set or folder does not have the shape that is needed."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data set or file is not where it was looked for."""


class ImageError(DataError):
    """A file could not be read as an image, or a value is no image."""


class DownloadError(SiamcamError, OSError):
    """A download was cut short, altered, or tried to write outside its folder."""


class CacheError(SiamcamError, OSError):
    """The cache folder cannot be read or written."""


class PairError(SiamcamError, ValueError):
    """Images cannot be split or paired as asked."""


class ModelError(SiamcamError, ValueError):
    """A network, a backbone name or a weights file does not fit."""


class TrainingError(SiamcamError, RuntimeError):
    """Training cannot start, or cannot be resumed."""


class EvaluationError(SiamcamError, ValueError):
    """Scores or labels from which no metric can be computed."""


class ExplanationError(SiamcamError, ValueError):
    """A pair cannot be explained as asked."""


class GalleryError(SiamcamError, ValueError):
    """A gallery of explanations is damaged, or cannot be made or asked as wanted."""


class BookError(SiamcamError, RuntimeError):
    """A chapter failed, or the book could not be built."""
