# SPDX-License-Identifier: BSD-3-Clause
"""Images that the trained network still answers surely, found by a generator trained along."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.adam import adam

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss.watch import plain

__all__ = ["Ask", "Seeker"]

Ask = Callable[[Tensor], Any]
"""From (M, C, H, W) images to what the trained network answers in evaluation mode."""

LATENT = 64
WIDTHS = (64, 32)
CROWD = 64
"""The fewest images that one step of the search looks at: variety shows in many answers alone."""
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Seeker(nn.Module):
    """A generator of images that the trained network answers surely and variously.

    In each step it learns to maximise the entropy of the mean answer minus the mean entropy of the
    answers, as the generators of data-free thieves do, and so finds what a thief could still use.
    Its weights ask for no gradients and are no business of the caller's optimizer; with Adam's
    moments they are in the ``state_dict``.

    Args:
        shape: (C, H, W) of the images.
    """

    shape: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        h, w = math.ceil(height / 4), math.ceil(width / 4)
        many, few = WIDTHS
        self.net = nn.Sequential(
            nn.Linear(LATENT, many * h * w),
            nn.Unflatten(1, (many, h, w)),
            nn.BatchNorm2d(many, track_running_stats=False),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(many, few, 3, padding=1, bias=False),
            nn.BatchNorm2d(few, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Upsample(size=(height, width)),
            nn.Conv2d(few, channels, 3, padding=1),
            nn.Sigmoid(),
        ).requires_grad_(False)
        size = sum(weight.numel() for weight in self.net.parameters())
        self.register_buffer("shape", torch.tensor(tuple(shape)))
        self.register_buffer("first", torch.zeros(size))
        self.register_buffer("second", torch.zeros(size))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: Tensor, count: int, ask: Ask) -> Tensor:
        """Take one step of the search, and return what was looked at.

        Args:
            images: (N, C, H, W) training images, whose range of pixels the found ones take.
            count: how many to return.
            ask: the trained network.

        Returns:
            (count, C, H, W) in shares of that range, [0, 1].

        Raises:
            ConfigError: if the network answers no logits, or passes no gradient to its inputs.
        """
        low = images.amin(dim=(0, 2, 3), keepdim=True)
        high = images.amax(dim=(0, 2, 3), keepdim=True)
        weights = {n: w.detach().requires_grad_() for n, w in self.net.named_parameters()}
        with torch.enable_grad():
            latent = torch.randn(max(count, CROWD), LATENT).to(self.first)
            shares = functional_call(self.net, weights, (latent,))
            logits = plain(ask((low + shares * (high - low)).to(images.dtype)))
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ConfigError(
                    "outliers of kind generated are sought among the model's logits (N, C), and in "
                    "evaluation mode it returns something else: leave this kind out"
                )
            regret = _sure(logits) - _varied(logits)
        if not regret.requires_grad:
            raise ConfigError(
                "outliers of kind generated are sought along the gradient of the model, which "
                "passes none to its inputs in evaluation mode: leave this kind out"
            )
        self._learn(torch.autograd.grad(regret, list(weights.values())))
        return shares.detach()[:count].float()

    def _learn(self, gradients: tuple[Tensor, ...]) -> None:
        """Take a step of Adam."""
        flat = nn.utils.parameters_to_vector(self.net.parameters()).detach()
        gradient = nn.utils.parameters_to_vector(gradients)
        adam(
            *([flat], [gradient], [self.first], [self.second], [], [self.steps]),
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=LEARNING_RATE,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )
        nn.utils.vector_to_parameters(flat, self.net.parameters())

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], prefix: str) -> Seeker | None:
        """Return a seeker that can take what a ``state_dict`` holds of one, if it does."""
        shape = state.get(f"{prefix}shape")
        if shape is None:
            return None
        return cls(shape.tolist())


def _sure(logits: Tensor) -> Tensor:
    """Mean entropy of the answers: 0 where each is one class for certain."""
    log_q = logits.float().log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(dim=1).mean()


def _varied(logits: Tensor) -> Tensor:
    """Entropy of the mean answer: log C where all classes are answered alike."""
    mean = logits.float().softmax(dim=1).mean(dim=0)
    return torch.special.entr(mean).sum()
