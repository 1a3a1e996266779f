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
from collections.abc import Mapping
from typing import Any

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explaining import Explainer, Pairs

__all__ = ["QUICK", "Explainer", "Pairs", "every", "get", "names"]

QUICK: dict[str, Any] = {"channels": 24, "masks": 60, "samples": 40, "steps": 8, "stride": 0.2}
"""Settings of methods that look again and again, with which they look less often: for a table on
two cores, not for the last word. Given to `every`."""

TAKEN_OVER = {"utkin": ("decoder", "explainlfs"), "two_scale": ("average", "centred")}
"""What an explainer need not learn itself: a setting, and of which other it is the attribute."""


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
    kind, known = _kind(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        settings = ", ".join(known) or "none"
        raise ExplanationError(
            f"{kind.title} has no setting {unknown[0]!r}; its settings are: {settings}."
        )
    return kind(**options)


def every(
    net: Any,
    images: ImageSet,
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Explainer]:
    """All explainers by name, ready to explain pairs before `net`.

    Those that must learn something are fitted; what two of them need is learnt once.

    Args:
        net: As in `sc.explain`.
        images: Training pictures with labels, of two classes or more.
        settings: `QUICK`, or others by name; each goes to whichever explainer has it.
        seed: Of whatever is drawn.
        progress: Show progress.

    Raises:
        ExplanationError: as `Explainer.fit`.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=20), sc.SiameseNet(image_size=64)
        >>> ready = every(net, images, QUICK, progress=False)
        >>> list(ready) == names(), ready["lime"].samples
        (True, 40)
    """
    ready: dict[str, Explainer] = {}
    for name in sorted(names(), key=lambda name: name in TAKEN_OVER):
        _, known = _kind(name)
        options = {key: value for key, value in (settings or {}).items() if key in known}
        if name in TAKEN_OVER:
            setting, other = TAKEN_OVER[name]
            options[setting] = getattr(ready[other], setting)
        ready[name] = get(name, **options)
        if ready[name].needs:
            ready[name].fit(net, images, seed=seed, progress=progress)
    return {name: ready[name] for name in names()}


def _kind(name: str) -> tuple[type[Explainer], Mapping[str, inspect.Parameter]]:
    """The class of that name, and its settings."""
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Explainer)
        and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        found = ", ".join(kind.__name__ for kind in kinds) or "none"
        raise ExplanationError(
            f"The file explainers/{name}.py holds {len(kinds)} subclasses of Explainer ({found}); "
            "it needs exactly one. What several share belongs beside the folder, as in cams.py."
        )
    [kind] = kinds
    for attribute in ("title", "source", "cost", "limits"):
        if not getattr(kind, attribute, "").strip():
            raise ExplanationError(
                f"The explainer {kind.__name__} of explainers/{name}.py does not say its "
                f"{attribute!r}; see siamcam_lib.explaining.Explainer."
            )
    return kind, inspect.signature(kind).parameters
