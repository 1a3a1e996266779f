"""Every explainer, one file each, by name.

Taught in the chapter on the other explainers. Adding one is adding one file to this folder: a
subclass of `siamcam_lib.explaining.Explainer`; its name is the file's, and tables, tests and
`sc.explain` find it there.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs

__all__ = ["Explainer", "Pairs", "get", "names"]


def names() -> list[str]:
    """Names of all explainers, in alphabetical order.

    Example:
        >>> "gradcam" in names()
        True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str, **options: Any) -> Explainer:
    """The explainer of that name.

    Args:
        name: One of `names`.
        options: Its settings; see its own documentation.

    Raises:
        ExplanationError: if there is none, or it has no such setting.

    Example:
        >>> get("shared")
        Shared(shared evidence; closed form)
    """
    if not isinstance(name, str) or name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ExplanationError(
            f"No method is called {name!r}. {hint}Known are {', '.join(names())}."
        )
    module = importlib.import_module(f"{__name__}.{name}")
    [kind] = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Explainer)
        and value.__module__ == module.__name__
    ]
    known = inspect.signature(kind).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        settings = ", ".join(known) or "none"
        raise ExplanationError(
            f"{kind.title} has no setting {unknown[0]!r}; its settings are: {settings}."
        )
    return kind(**options)
