# SPDX-License-Identifier: BSD-3-Clause
"""A generator that imitates a thief's images: a small variational autoencoder."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from brevitas_divqat.progress import Progress, silent
from brevitas_divqat.seeding import generator, seeded

__all__ = ["Autoencoder", "imitate"]

BRIGHTEST = 255
"""Of 8-bit pixels."""
BATCH = 128
"""Images per step."""
LR = 1e-3
"""Of Adam."""


class Autoencoder(nn.Module):
    """A variational autoencoder (Kingma, Welling, ICLR 2014, arXiv 1312.6114) without convolutions.

    The encoder has one hidden layer, the decoder two; pixels are probabilities of a Bernoulli
    distribution.

    Args:
        image_shape: (C, H, W), of any size.
        latent: entries of a latent vector.
        width: units of a hidden layer.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent: int, width: int) -> None:
        super().__init__()
        channels, height, across = image_shape
        values = channels * height * across
        self.latent = latent
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(values, width),
            nn.ReLU(),
            nn.Linear(width, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, values),
            nn.Unflatten(1, image_shape),
        )

    def loss(self, shares: Tensor, noise: Tensor, divergence: float) -> Tensor:
        """Return the mean over images of reconstruction error and weighted divergence, in nats.

        Args:
            shares: (N, C, H, W) pixels from 0 to 1.
            noise: (N, latent) normal numbers.
            divergence: weight of the divergence from the normal distribution.
        """
        mean, log_variance = self.encoder(shares).chunk(2, dim=1)
        raw = self.decoder(mean + noise * (log_variance / 2).exp())
        error = F.binary_cross_entropy_with_logits(raw, shares, reduction="sum")
        excess = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (error + divergence * excess) / len(shares)

    @torch.no_grad()
    def pixels(self, latent: Tensor) -> Tensor:
        """Return (N, C, H, W) uint8 images of (N, latent) vectors, both on the CPU."""
        device = next(self.parameters()).device
        shares = self.decoder(latent.to(device)).sigmoid()
        return (shares * BRIGHTEST).round().to(torch.uint8).cpu()


def imitate(
    images: NDArray[np.uint8],
    *,
    latent: int,
    width: int,
    divergence: float,
    steps: int,
    seed: int,
    device: torch.device,
    progress: Progress = silent,
) -> Autoencoder:
    """Train an autoencoder on images; nobody is asked about them.

    Args:
        images: (N, C, H, W) uint8, N of 1 or more, drawn from with replacement.
        latent: see `Autoencoder`.
        width: see `Autoencoder`.
        divergence: weight of the divergence; the less, the sharper the images, and the less do
            those of random latent vectors look like the given ones.
        steps: of 128 images each.
        seed: of weights, order and noise.
        device: where it is trained and stays.
        progress: shows the steps.

    Returns:
        The autoencoder, in evaluation mode.
    """
    with seeded(seed, "autoencoder"):
        model = Autoencoder((images.shape[1], images.shape[2], images.shape[3]), latent, width)
    model.to(device).train()
    random = generator(seed, "autoencoder", "steps")
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    with progress("generator", steps) as show:
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH,), generator=random).numpy()
            shares = torch.from_numpy(images[chosen]).to(device).float() / BRIGHTEST
            noise = torch.randn(BATCH, latent, generator=random).to(device)
            loss = model.loss(shares, noise, divergence)
            adam.zero_grad()
            loss.backward()
            adam.step()
            show(1, f"loss {float(loss.detach()):.0f}")
    return model.eval()
