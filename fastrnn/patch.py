"""Swap the functions of an existing NumPy project for ours, in place, and back."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

_lock = threading.Lock()


class Patch:
    """What :func:`patch` swapped, and the way back. ``print`` shows it; the end of a ``with`` block undoes it.

    Attributes
    ----------
    module : str
        Name of the module that was patched.
    swapped : dict of str to list of str
        For each function swapped, every place where it was bound: ``"module.name"``.
    kept : dict of str to str
        For each function of ours that the module has and keeps, the reason.
    """

    def __init__(self, module: str, swaps: dict[str, tuple[Any, Any]], kept: dict[str, str]) -> None:
        self.module = module
        self.kept = kept
        self._swaps = swaps
        places = _rebind([(theirs, ours) for theirs, ours in swaps.values()])
        self.swapped = {name: places[id(theirs)] for name, (theirs, _) in swaps.items()}

    def undo(self) -> None:
        """Put the project's own functions back, wherever ours are bound by now. Doing it twice does nothing more.

        Modules that were imported in the meantime, and took our functions over, get the project's functions too.
        """
        with _lock:
            _rebind([(ours, theirs) for theirs, ours in self._swaps.values()])
            self._swaps = {}

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [f"fastrnn.patch({self.module!r}): {len(self.swapped)} swapped, {len(self.kept)} kept"]
        width = max(map(len, (*self.swapped, *self.kept)), default=0)
        for name, places in self.swapped.items():
            lines.append(f"  swapped  {name:{width}}  in {', '.join(place.rpartition('.')[0] for place in places)}")
        lines += [f"  kept     {name:{width}}  {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def patch(module: str | ModuleType, only: str | Iterable[str] | None = None) -> Patch:
    """Swap the functions of a NumPy project for fastrnn's of the same name, in place.

    A function is swapped if it is a plain Python function whose positional arguments ours takes too. It is swapped
    wherever it is bound in a module imported so far, so that ``from layers import *`` elsewhere is served as well.
    ``x_forward`` and ``x_backward`` share a cache and are swapped together or not at all.

    Parameters
    ----------
    module : str or module
        The module that holds the functions; a name is imported.
    only : str or iterable of str, optional
        Names to swap; by default all that can be swapped, except ``gru_*``, whose gate order differs between projects:
        name those if yours is the one of :func:`fastrnn.gru_forward`.

    Returns
    -------
    Patch
        Lists what was swapped and what was not and why; ``undo()`` swaps back, and so does the end of a ``with`` block.
        What is fastrnn's already is left as it is.

    Raises
    ------
    ModuleNotFoundError
        There is no such module.
    ValueError
        Nothing in the module can be swapped, or a name of `only` cannot.
    TypeError
        `module` is neither a module nor a name.

    Notes
    -----
    What an object took before stays with it: a solver that holds ``self.update_rule = optim.adam`` must be built
    after patching. Where the project's parameters have other names, only calls by position work after it.

    Examples
    --------
    >>> import fastrnn
    >>> with fastrnn.patch("cs231n.rnn_layers") as patched:  # doctest: +SKIP
    ...     print(patched)
    ...     train()
    """
    module = _module(module)
    names = _wanted(only)
    with _lock:
        ours = _api()
        swaps: dict[str, tuple[Any, Any]] = {}
        kept: dict[str, str] = {}
        for name in ours if names is None else names:
            if name not in ours:
                raise ValueError(f"patch: only={name!r} is no function of fastrnn's drop-in API: {', '.join(ours)}")
            if name not in vars(module):
                if names is not None:
                    raise ValueError(f"patch: module {module.__name__!r} has no {name!r}, which only= names")
                continue
            theirs = vars(module)[name]
            reason = _mismatch(theirs, ours[name])
            if not reason and names is None and name.startswith("gru_"):
                reason = "gate orders differ between projects; name it in only= if yours is r, z, n"
            if reason:
                kept[name] = reason
            else:
                swaps[name] = (theirs, _copy(ours[name]))
        for name in list(swaps):
            partner = _partner(name)
            if partner in vars(module) and partner not in swaps:
                del swaps[name]
                why = f": it {kept[partner]}" if partner in kept else " in only="
                kept[name] = f"shares a cache with {partner}, which is not swapped{why}"
        kept = dict(sorted(kept.items()))
        already = [name for name, reason in kept.items() if reason == _ALREADY]
        refused = {name: reason for name, reason in kept.items() if reason != _ALREADY}
        if names is not None and refused:
            raise ValueError(f"patch: {_sentence(refused)}")
        if not swaps and not already:
            reason = _nothing(module, refused, ours)
            raise ValueError(f"patch: module {module.__name__!r} has nothing to swap: {reason}")
        return Patch(module.__name__, swaps, kept)


_ALREADY = "is fastrnn's already"


def _module(module: Any) -> ModuleType:
    if isinstance(module, ModuleType):
        return module
    if not isinstance(module, str):
        raise TypeError(f"patch: argument 'module' must be a module or its name, got {type(module).__name__}")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ModuleNotFoundError(f"patch: there is no module {module!r}: {error}", name=error.name) from error


def _wanted(only: Any) -> list[str] | None:
    if only is None:
        return None
    names = [only] if isinstance(only, str) else list(only)
    if not names:
        raise ValueError("patch: only=[] names nothing to swap")
    return names


def _api() -> dict[str, FunctionType]:
    """The drop-in functions: everything public that stands in ``fastrnn.ops``."""
    import fastrnn  # not above: fastrnn itself imports this file

    functions = {name: getattr(fastrnn, name) for name in fastrnn.__all__}
    return {name: f for name, f in functions.items() if getattr(f, "__module__", "").startswith("fastrnn.ops.")}


def _mismatch(theirs: Any, ours: FunctionType) -> str:
    """Why `theirs` cannot be swapped for `ours`; empty if it can."""
    if not isinstance(theirs, FunctionType):
        return f"is no plain Python function but {type(theirs).__name__}"
    if theirs.__code__ is ours.__code__:
        return _ALREADY
    kind = inspect.Parameter
    have = list(inspect.signature(theirs).parameters.values())
    take = [p for p in inspect.signature(ours).parameters.values() if p.kind is kind.POSITIONAL_OR_KEYWORD]
    for p in have:
        if p.kind not in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD):
            return f"takes {p}, which fastrnn's does not"
    required = [p.name for p in take if p.default is kind.empty]
    if not len(required) <= len(have) <= len(take):
        return f"takes {len(have)} arguments; fastrnn's are ({', '.join(p.name for p in take)})"
    names = [p.name for p in take]
    for position, (p, q) in enumerate(zip(have, take, strict=False)):
        if p.name != q.name and p.name in names:
            return f"takes {p.name!r} as argument {position + 1}; fastrnn's is number {names.index(p.name) + 1}"
        if p.default is not kind.empty and not _same_default(p.default, q.default):
            default = "has no default" if q.default is kind.empty else f"defaults to {q.default!r}"
            return f"has {p.name!r} default to {p.default!r}; fastrnn's {default}"
    return ""


def _same_default(theirs: Any, ours: Any) -> bool:
    return type(theirs) is type(ours) and bool(theirs == ours)


def _partner(name: str) -> str:
    stem, _, direction = name.rpartition("_")
    other = {"forward": "backward", "backward": "forward"}.get(direction, "")
    return f"{stem}_{other}" if other else ""


def _copy(f: FunctionType) -> Callable[..., Any]:
    """A second function object over the same code, at no cost a call: undoing tells it from ours bound on purpose."""
    twin = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    twin.__kwdefaults__ = f.__kwdefaults__
    return functools.update_wrapper(twin, f)


def _rebind(pairs: list[tuple[Any, Any]]) -> dict[int, list[str]]:
    """In every module imported, bind the second of each pair where the first is; the places, by id of the first."""
    replacements = {id(old): (old, new) for old, new in pairs}
    places: dict[int, list[str]] = {key: [] for key in replacements}
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        namespace = object.__getattribute__(module, "__dict__")  # past a lazy module's own __getattribute__
        for name, value in list(namespace.items()):
            if id(value) in replacements:
                namespace[name] = replacements[id(value)][1]
                places[id(value)].append(f"{module.__name__}.{name}")
    return places


def _sentence(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in reasons.items())


def _nothing(module: ModuleType, refused: dict[str, str], ours: dict[str, FunctionType]) -> str:
    if refused:
        return _sentence(refused)
    prefix = f"{module.__name__}."
    inside = [
        name
        for name, other in list(sys.modules.items())
        if name.startswith(prefix) and isinstance(other, ModuleType) and ours.keys() & vars(other).keys()
    ]
    hint = f"; did you mean {' or '.join(map(repr, sorted(inside)))}?" if inside else ""
    return f"it has none of fastrnn's names{hint}"
