"""Swap the recurrent modules of an existing model for fastrnn's, in place, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .cells import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN
from .selection import BACKENDS

PAIRS: dict[type, Any] = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}
_BACK = {ours: theirs for theirs, ours in PAIRS.items()}


@dataclass
class Report:
    """What :func:`convert` or :func:`revert` did, by the modules' names in the model; "" is the model itself.

    Attributes
    ----------
    replaced : dict of str to str
        The class that each module has now. A module that the model holds under several names stands here once.
    kept : dict of str to str
        Recurrent modules that were left as they are, with the reason.
    """

    action: str
    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        count = len(self.replaced)
        lines = [f"{self.action}: {count} module{'' if count == 1 else 's'} replaced, {len(self.kept)} left"]
        lines += [f"  {name or '(the model)'}: now {now}" for name, now in self.replaced.items()]
        lines += [f"  {name or '(the model)'}: left as it is: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)


def convert(model: nn.Module, *, backend: str = "auto") -> Report:
    """Let fastrnn's kernels run the recurrent modules and cells of a model; the model is changed in place.

    Modules stay the objects that they are, and only change their class: whoever holds one (an optimiser its parameters,
    a hook, a second name) holds the converted one. Parameters, buffers, hooks, training mode, dtype and device are not
    touched, and checkpoints load both ways.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, also a recurrent module itself.
    backend : {"auto", "fastrnn", "torch"}, optional
        Of the converted modules: see :class:`fastrnn.torch.LSTM`. With ``"fastrnn"`` a module with an option that has
        no kernel is left as it is.

    Returns
    -------
    Report
        What was replaced, and what was not and why; print it.

    Raises
    ------
    TypeError
        `model` is not a module, or is a TorchScript module.
    ValueError
        `backend` is none of these.

    Examples
    --------
    >>> import torch, fastrnn.torch
    >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16, proj_size=4))
    >>> print(fastrnn.torch.convert(model, backend="fastrnn"))
    convert: 0 modules replaced, 1 left
      0: left as it is: option proj_size=4 has no kernel here
    """
    _check_model("convert", model)
    if backend not in BACKENDS:
        raise ValueError(
            f"convert: argument 'backend' must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}"
        )
    report = Report("convert")
    for name, module in model.named_modules():
        ours = PAIRS.get(type(module))
        if ours is not None:
            module.__class__ = ours
            lack = module._lack() if backend == "fastrnn" else ""
            if lack:
                module.__class__ = _BACK[ours]
                report.kept[name] = f"{lack} has no kernel here"
                continue
            module.backend = backend
            # A module that torch.nn's kernels go on running is converted too: its dtype or device may change.
            report.replaced[name] = _told(ours) + ("" if module.runs_on == "fastrnn" else f", runs_on {module.runs_on}")
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            report.kept[name] = _why_kept(module)
    return report


def revert(model: nn.Module) -> Report:
    """Undo :func:`convert`: fastrnn's recurrent modules of a model become torch.nn's again, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. Modules that were made as fastrnn's become torch.nn's too.

    Returns
    -------
    Report

    Raises
    ------
    TypeError
        `model` is not a module, or is a TorchScript module.
    """
    _check_model("revert", model)
    report = Report("revert")
    for name, module in model.named_modules():
        theirs = _BACK.get(type(module))
        if theirs is not None:
            module.__class__ = theirs
            module.__dict__.pop("_backend", None)
            report.replaced[name] = f"torch.nn.{theirs.__name__}"
        elif isinstance(module, tuple(_BACK)):
            report.kept[name] = f"class {type(module).__qualname__} derives from fastrnn's"
    return report


def _check_model(function: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: argument 'model' must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{function}: argument 'model' must not be a TorchScript module; {function} it before scripting"
        )


def _told(kind: type) -> str:
    return f"fastrnn.torch.{kind.__name__}"


def _why_kept(module: nn.Module) -> str:
    kind = type(module)
    if isinstance(module, tuple(_BACK)):
        return f"already {_told(kind)}"
    if "parametrizations" in module._modules:
        return "parametrized: its class holds the parametrizations; convert before they are registered"
    return f"class {kind.__module__}.{kind.__qualname__} may have a forward of its own"
