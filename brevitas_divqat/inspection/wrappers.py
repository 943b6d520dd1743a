# SPDX-License-Identifier: BSD-3-Clause
"""The model inside what is put around one to train it."""

from __future__ import annotations

from torch import nn

__all__ = ["unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``DataParallel``, ``DistributedDataParallel`` and ``compile``.

    Args:
        model: in any number of these wrappers, in any order, or in none.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
            continue
        original = getattr(model, "_orig_mod", None)  # what torch.compile was given
        if not isinstance(original, nn.Module):
            return model
        model = original
