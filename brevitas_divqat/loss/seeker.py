# SPDX-License-Identifier: BSD-3-Clause
"""Images that the trained network still answers surely, found by a generator trained along."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.optim.adam import adam

from brevitas_divqat.errors import ConfigError
from brevitas_divqat.loss.watch import Ask, plain
from brevitas_divqat.seeding import seeded

__all__ = ["LEAVE_OUT", "Seeker"]

LATENT = 64
WIDTHS = (64, 32)
LARGEST = 8
"""Side of the first layer's maps, at the most; those of smaller images have a quarter of theirs."""
CROWD = 64
"""The fewest images that one step of the search looks at: variety shows in many answers alone."""
LEARNING_RATE = 1e-3
HALVED = 300
"""Steps after which the learning rate is half; it falls as 1 / (1 + t / HALVED). The network's own
falls too: a generator that goes on as it began outruns it, most of all one of 2 bits, ends beside
the training images, and costs accuracy."""
BETAS = (0.9, 0.999)
EPSILON = 1e-8
LEAVE_OUT = "leave this kind out"


class Seeker(nn.Module):
    """A generator that learns to make images which the network answers surely and variously.

    Its steps, one per batch, are towards a larger entropy of the mean answer minus the mean entropy
    of the answers, as those of data-free thieves' generators are, so it finds what a thief could
    still use. It has no parameters: its weights and Adam's moments are buffers, of 32 bits whatever
    this module is converted to, and no business of the caller's optimizer.

    Args:
        channels: of the images.
        height: of the first layer's maps, see `like`.
        width: of these.
    """

    shape: Tensor
    weights: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        # Of its own random numbers: whoever counts on the training's finds them in their place.
        with seeded(torch.initial_seed(), "seeker"):
            net = _Generator(channels, height, width)
        weights = nn.utils.parameters_to_vector(net.parameters()).detach()
        # In a tuple, so that nn.Module does not register it as a part of this one.
        self._net = (net.to("meta"),)
        self._channels = channels  # as in `shape`, which a GPU would have to be waited for
        self._last: tuple[Tensor, Tensor] | None = None  # a latent, and the images made of it
        self.register_buffer("shape", torch.tensor((channels, height, width)))
        self.register_buffer("weights", weights)
        self.register_buffer("first", torch.zeros_like(weights))
        self.register_buffer("second", torch.zeros_like(weights))
        self.register_buffer("steps", torch.zeros(()))

    @classmethod
    def like(cls, images: Tensor) -> Seeker:
        """Return a new seeker of images like these (N, C, H, W), which may change their size."""
        sides = (min(math.ceil(side / 4), LARGEST) for side in images.shape[2:])
        return cls(images.shape[1], *sides).to(images.device)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], prefix: str) -> Seeker | None:
        """Return a seeker that can take what a ``state_dict`` holds of one, if it does."""
        shape = state.get(f"{prefix}shape")
        return None if shape is None else cls(*shape.tolist())

    def forward(self, images: Tensor, count: int, ask: Ask) -> Tensor:
        """Make images, and take a step of the search.

        Args:
            images: (N, C, H, W) training images, whose range of pixels the made ones take.
            count: how many to make.
            ask: the trained network.

        Returns:
            (count, C, H, W) in shares of that range, [0, 1].

        Raises:
            ConfigError: if the images have other channels than before, or the network answers no
                logits or passes no gradient to its inputs.
        """
        if images.shape[1] != self._channels:
            raise ConfigError(
                f"the images have {images.shape[1]} channels, and outliers of kind generated were "
                f"sought for images of {self._channels}: make a new DivQATLoss for these"
            )
        latent = torch.randn(max(count, CROWD), LATENT).to(self.weights)
        if _in_backward_pass():
            return self._again(latent)[:count]
        made, gradient = self._asked(images, latent, ask)
        self._learn(gradient)
        self._last = latent, made.detach()
        return made[:count].detach()

    def _again(self, latent: Tensor) -> Tensor:
        """Return what a checkpointed pass had, which runs a second time."""
        if self._last is None or not torch.equal(latent, self._last[0]):
            raise ConfigError(
                "a checkpointed pass runs again, and is not the last one that had outliers of kind "
                "generated: call backward() after each, use torch.utils.checkpoint with "
                f"use_reentrant=False and preserve_rng_state=True, or {LEAVE_OUT}"
            )
        return self._last[1]

    def _made(self, weights: Tensor, latent: Tensor, images: Tensor) -> Tensor:
        (net,) = self._net
        sizes = [weight.numel() for weight in net.parameters()]
        parts = zip(net.named_parameters(), weights.split(sizes), strict=True)
        named = {name: part.view(weight.shape) for (name, weight), part in parts}
        made: Tensor = functional_call(net, named, (latent, images.shape[2:]))
        return made

    def _asked(self, images: Tensor, latent: Tensor, ask: Ask) -> tuple[Tensor, Tensor]:
        """Return images, and how the weights answer for what the network says of them."""
        low = images.amin(dim=(0, 2, 3), keepdim=True)
        high = images.amax(dim=(0, 2, 3), keepdim=True)
        weights = self.weights.clone().requires_grad_()
        # In a checkpointed pass the tensors of this graph are not those that it must have again.
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            shares = self._made(weights, latent, images)
            with ask((low + shares * (high - low)).to(images.dtype)) as answer:
                logits = plain(answer)
                if not isinstance(logits, Tensor) or logits.ndim != 2:
                    raise ConfigError(
                        "outliers of kind generated are sought among the model's logits (N, C), "
                        f"and in evaluation mode it returns something else: {LEAVE_OUT}"
                    )
                if not logits.requires_grad:
                    raise ConfigError(
                        "outliers of kind generated are sought along the model's gradient, and in "
                        f"evaluation mode it passes none to its inputs: {LEAVE_OUT}"
                    )
                gradient = _gradient_of(_unsure(logits) - _varied(logits), weights)
        # One bad batch, which a loop may skip, must not stay in the moments.
        return shares, gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _learn(self, gradient: Tensor) -> None:
        """Take a step of Adam."""
        adam(
            *([self.weights], [gradient], [self.first], [self.second], [], [self.steps]),
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=LEARNING_RATE / (1 + float(self.steps) / HALVED),
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Seeker:
        """Follow a move to a device, and no conversion: Adam's epsilon is 0 in 16 bits."""
        super()._apply(fn, *args, **kwargs)
        for name, value in self.named_buffers():
            setattr(self, name, value.float() if value.is_floating_point() else value)
        return self


class _Generator(nn.Module):
    """From latent vectors to images, by way of coarse maps."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        many, few = WIDTHS
        self.coarse = nn.Sequential(
            nn.Linear(LATENT, many * height * width),
            nn.Unflatten(1, (many, height, width)),
            nn.BatchNorm2d(many, track_running_stats=False),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(many, few, 3, padding=1, bias=False),
            nn.BatchNorm2d(few, track_running_stats=False),
            nn.LeakyReLU(0.2),
        )
        self.fine = nn.Conv2d(few, channels, 3, padding=1)

    def forward(self, latent: Tensor, size: torch.Size) -> Tensor:
        maps = F.interpolate(self.coarse(latent), size=size)
        return torch.sigmoid(self.fine(maps))


def _in_backward_pass() -> bool:
    """Tell whether autograd is running: the forward pass then is a checkpoint's second one."""
    return bool(torch._C._current_graph_task_id() != -1)  # as torch.utils.checkpoint asks


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _gradient_of(regret: Tensor, weights: Tensor) -> Tensor:
    try:
        return torch.autograd.grad(regret, weights)[0]
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise ConfigError(
            "outliers of kind generated are sought along the model's gradient, which cannot be "
            f"taken ({' '.join(str(error).split())[:200]}): use torch.utils.checkpoint with "
            f"use_reentrant=False, or {LEAVE_OUT}"
        ) from error


def _unsure(logits: Tensor) -> Tensor:
    """Mean entropy of the answers: 0 where each is one class for certain."""
    log_q = logits.float().log_softmax(dim=1)
    return -(log_q.exp() * log_q).sum(dim=1).mean()


def _varied(logits: Tensor) -> Tensor:
    """Entropy of the mean answer: log C where all classes are answered alike."""
    log_mean = logits.float().log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()
