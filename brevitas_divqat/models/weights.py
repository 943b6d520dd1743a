# SPDX-License-Identifier: BSD-3-Clause
"""Trained weights of a plain PyTorch model, loaded into a Brevitas model of the same layers."""

from __future__ import annotations

import difflib
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brevitas_divqat.errors import CheckpointError, ConfigError
from brevitas_divqat.inspection import copied, unwrapped

__all__ = ["LoadReport", "load_float_weights"]

INNER = ("state_dict", "model_state_dict", "model", "net")
"""Where Lightning, common scripts and torchvision's own keep the weights of a checkpoint."""

SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """What became of every name, in the model's spelling, sorted.

    Attributes:
        loaded: taken from the checkpoint.
        initialised: the quantizers' own scales, which start anew from the loaded weights or from
            the statistics of the next batches, and what ``skip`` names, which keeps its values.
        unexpected: in the checkpoint alone; with ``strict`` only what stands beside the network,
            as a criterion's step does.
        missing: not in the checkpoint and left as it was; with ``strict`` none.
    """

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as one line."""
        parts = [f"{len(self.loaded)} loaded", f"{len(self.initialised)} initialised"]
        for name in ("unexpected", "missing"):
            names = getattr(self, name)
            parts += [f"{len(names)} {name} ({_some(names)})"] if names else []
        return ", ".join(parts)


def load_float_weights(
    model: nn.Module,
    state_dict: Mapping[str, Any] | str | Path,
    *,
    skip: Sequence[str] = (),
    strict: bool = True,
) -> LoadReport:
    """Load full-precision weights into a Brevitas model whose layers have the same names, in place.

    Every quantizer is made anew: scales that come from weights start from the loaded ones, and
    activation scales collect statistics again (``brevitas_divqat.training.calibrate`` sets them at
    once). Their parameters are new objects, so **make the optimizer after loading**: an earlier one
    would go on with the old scales, which belong to nothing any more. On an error the model is as
    it was. Brevitas' global flags for loading are set meanwhile, visible to other threads, and
    restored whatever happens.

    Args:
        model: the network; a DataParallel or compiled one is looked into.
        state_dict: names to tensors, also under a prefix, as DataParallel, ``torch.compile`` and
            Lightning modules put before the names (``module.``, ``net.``, ``student.model.``), also
            inside a checkpoint's ``"state_dict"``, ``"model_state_dict"``, ``"model"`` or
            ``"net"``; or a file of it: ``.pth``, ``.pt``, ``.ckpt`` (read without running code) or
            ``.safetensors``.
        skip: prefixes of names that are not loaded, as the model spells them, e.g. ``("fc.",)`` for
            other classes.
        strict: refuse weights that are missing or left over, and a quantized checkpoint without all
            scales; otherwise these are reported. Left over is what lies under the network's prefix
            or, beside it, under a first name that has weights of two or more dimensions; all else
            beside a prefix (a criterion's step, a metric's counts) is no error. Shapes that differ
            are refused in any case.

    Raises:
        CheckpointError: if the file cannot be read, the weights are of another network, or more
            than one prefix fits.
        ConfigError: if ``skip`` names nothing in the model.

    Example:
        >>> from torch import nn
        >>> from brevitas.nn import QuantLinear
        >>> report = load_float_weights(QuantLinear(4, 2), nn.Linear(4, 2).state_dict())
        >>> report.loaded
        ('bias', 'weight')
    """
    model = unwrapped(model)
    found = _tensors(state_dict)
    names = _names(model)
    found = _without_compiled_parts(found, names)
    prefix = _prefix(found, names)
    _check_skip(skip, model)
    inside = {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}
    beside = {n: t for n, t in found.items() if not n.startswith(prefix)}
    state = {name: t for name, t in inside.items() if not name.startswith(tuple(skip))}
    _check_shapes(model, state)
    # What Brevitas does to names while it loads is found out on a copy, so that an error leaves the
    # model untouched.
    report = _load(copied(model), state, skip)
    if strict:
        _check_complete(report, model, state)
        _check_beside(beside, prefix)
    report = _load(model, state, skip)
    return replace(report, unexpected=tuple(sorted((*report.unexpected, *beside))))


def _load(model: nn.Module, state: Mapping[str, Tensor], skip: Sequence[str]) -> LoadReport:
    with _brevitas_flags():
        try:
            result = model.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise CheckpointError(
                f"the full-precision weights are of another network: {line}"
            ) from error
    proxies = _quantizers(model)
    absent = set(result.missing_keys) | {n for n in _names(model) if n not in state}
    own = {n for n in absent if n.startswith((*proxies, *skip))}
    unexpected = set(result.unexpected_keys)
    return LoadReport(
        loaded=tuple(sorted(state.keys() - unexpected)),
        initialised=tuple(sorted(own)),
        unexpected=tuple(sorted(unexpected)),
        missing=tuple(sorted(set(result.missing_keys) - own)),
    )


@contextmanager
def _brevitas_flags() -> Iterator[None]:
    """Have Brevitas make its quantizers anew, and torch name every scale that is missing."""
    from brevitas import config

    before = config.REINIT_ON_STATE_DICT_LOAD, config.IGNORE_MISSING_KEYS
    config.REINIT_ON_STATE_DICT_LOAD, config.IGNORE_MISSING_KEYS = True, False
    try:
        yield
    finally:
        config.REINIT_ON_STATE_DICT_LOAD, config.IGNORE_MISSING_KEYS = before


# --- Reading ------------------------------------------------------------------------------------


def _tensors(source: Any) -> dict[str, Tensor]:
    """Return names and tensors of a mapping, a checkpoint around one, or a file of either."""
    where = "the state_dict"
    if isinstance(source, (str, Path)):
        where, source = str(source), _read(Path(source))
    while (key := next((k for k in INNER if _is_mapping(source, k)), None)) is not None:
        source = source[key]
    if not isinstance(source, Mapping) or not source:
        what = "nothing" if isinstance(source, Mapping) else f"a {type(source).__name__}"
        raise CheckpointError(
            f"{where} holds {what}: give names and tensors, as model.state_dict() returns them"
        )
    wrong = next((k for k, v in source.items() if not isinstance(v, Tensor)), None)
    if wrong is not None:
        part = next((f", here perhaps [{k!r}]" for k in source if _is_mapping(source, k)), "")
        raise CheckpointError(
            f"{where} holds a {type(source[wrong]).__name__} under {wrong!r}: give names and "
            f"tensors alone, as model.state_dict() returns them{part}"
        )
    return {str(name): tensor for name, tensor in source.items()}


def _is_mapping(source: Any, key: str) -> bool:
    return isinstance(source, Mapping) and isinstance(source.get(key), Mapping)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path} ({error.strerror or error}): check the path"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged or holds more than tensors: save "
            "model.state_dict() alone"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: get or save it again") from error


def _without_compiled_parts(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Take off what ``torch.compile`` puts before the names in parts of a network."""
    if any("_orig_mod." in name for name in wanted):
        return state
    return {name.replace("._orig_mod.", "."): tensor for name, tensor in state.items()}


def _prefix(state: Mapping[str, Tensor], wanted: set[str]) -> str:
    """Find what stands before the names of a network in a checkpoint: what makes most names fit."""
    fitting: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        fitting.update(name.removesuffix(end) for end in ends if end in wanted)
    most = max(fitting.values(), default=0)
    best = sorted(prefix for prefix, count in fitting.items() if count == most)
    if not best:
        raise CheckpointError(
            "the full-precision weights are of another network: none of their names is in the "
            f"model, theirs are {_some(sorted(state))}, the model's {_some(sorted(wanted))}; give "
            "the weights of this network, under the model's names"
        )
    if best[0] and len(best) > 1:
        raise CheckpointError(
            f"the checkpoint has {len(best)} networks that fit, under {_some(best)}: give the "
            f"names of one alone, e.g. those that start with {best[0]!r}"
        )
    return best[0]


# --- Checking -----------------------------------------------------------------------------------


def _names(model: nn.Module) -> set[str]:
    """Name all that the model can load, also scales that are not set yet."""
    quantizers = tuple(_quantizers(model))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # A quantizer also lists the weights of its layers, which are listed there, too.
    weights = {id(p) for name, p in parameters.items() if not name.startswith(quantizers)}
    scales = {name for name, p in parameters.items() if id(p) not in weights}
    return set(model.state_dict()) | scales


def _quantizers(model: nn.Module) -> list[str]:
    from brevitas.proxy.quant_proxy import QuantProxyFromInjector

    modules = model.named_modules(remove_duplicate=False)  # one may be shared by several layers
    return [f"{name}." for name, module in modules if isinstance(module, QuantProxyFromInjector)]


def _check_skip(skip: Sequence[str], model: nn.Module) -> None:
    if isinstance(skip, str):
        raise ConfigError(f"skip is {skip!r}: give a tuple of prefixes, e.g. ({skip!r},)")
    names = _names(model)
    for prefix in skip:
        if prefix and any(name.startswith(prefix) for name in names):
            continue
        layers = {f"{name}." for name, _ in model.named_modules() if name}
        close = difflib.get_close_matches(prefix, layers, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the model has {_some(sorted(names))}"
        raise ConfigError(f"skip names {prefix!r}, which is in no name of the model: {hint}")


def _check_shapes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    different = [
        n for n, t in state.items() if n in own and t.shape != own[n].shape and own[n].dim() > 0
    ]
    if not different:
        return
    name = different[0]
    more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
    raise CheckpointError(
        f"the full-precision weights are of another network: {name} has shape "
        f"{tuple(state[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the "
        f"model{more}: give the weights of this network, or leave the layer out with "
        f"skip=({name.rpartition('.')[0] + '.'!r},)"
    )


def _check_complete(report: LoadReport, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    if report.missing or report.unexpected:
        raise CheckpointError(
            "the full-precision weights are of another network: missing "
            f"{_some(report.missing) or 'nothing'}, unexpected "
            f"{_some(report.unexpected) or 'nothing'}; give the weights of this network, or "
            "strict=False to load what fits"
        )
    own = tuple(_quantizers(model))
    absent = [name for name in report.initialised if own and name.startswith(own)]
    if absent and any(name.startswith(own) for name in state):
        raise CheckpointError(
            f"the checkpoint is of a quantized network, but has no {_some(absent)}: save it after "
            "calibration, or give strict=False to have these scales start anew"
        )


def _check_beside(beside: Mapping[str, Tensor], prefix: str) -> None:
    """Refuse what may be a part of the network, though it is not under the network's prefix."""

    def first(name: str) -> str:
        return name.partition(".")[0]

    layers = {first(name) for name, tensor in beside.items() if tensor.dim() > 1} | {first(prefix)}
    left = sorted(name for name in beside if first(name) in layers)
    if left:
        raise CheckpointError(
            f"the checkpoint has weights beside the network's, which are under {prefix!r}: "
            f"{_some(left)}; give the names that start with {prefix!r} alone, or strict=False to "
            "leave out the others"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
