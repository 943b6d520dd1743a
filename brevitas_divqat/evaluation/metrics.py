# SPDX-License-Identifier: BSD-3-Clause
"""Figures computed from scores: accuracy, fidelity, divergence, entropy, calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

__all__ = [
    "accuracy",
    "agreement",
    "calibration_error",
    "entropy",
    "kl_divergence",
    "labels_differing",
    "multiples_differing",
    "renamed_accuracy",
]

Scores = NDArray[np.float32]

CALIBRATION_BINS = 15


def accuracy(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Return the fraction of (N, K) ``scores`` whose arg max is the label."""
    return float((scores.argmax(axis=1) == labels).mean())


def agreement(scores: Scores, others: Scores) -> float:
    """Return the fraction of images on which two models' arg max agree: fidelity."""
    return float((scores.argmax(axis=1) == others.argmax(axis=1)).mean())


def renamed_accuracy(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Return the accuracy of (N, K) ``scores`` once their classes are renamed by the true labels.

    ``labels`` are (N,) in 0..K-1, N is 1 or more.

    Each class that the arg max names is read as the true class most frequent among its images. It
    is what a thief reaches at most who finds out that the answers he learnt name classes wrongly,
    where plain accuracy may lie below chance; at least 1/K, at least ``accuracy``.
    """
    counts = np.zeros((scores.shape[1], scores.shape[1]), np.int64)
    np.add.at(counts, (scores.argmax(axis=1), labels), 1)
    return float(counts.max(axis=1).sum() / len(labels))


def kl_divergence(scores: Scores, reference: Scores) -> float:
    """Return the mean KL(Q||P) in nats, Q = softmax(scores), P = softmax(reference)."""
    log_q = log_softmax(scores.astype(np.float64), axis=1)
    log_p = log_softmax(reference.astype(np.float64), axis=1)
    return float((np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean())


def entropy(scores: Scores) -> float:
    """Return the mean entropy of softmax(scores) in nats, 0 to log K."""
    log_q = log_softmax(scores.astype(np.float64), axis=1)
    return float(-(np.exp(log_q) * log_q).sum(axis=1).mean())


def calibration_error(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Return the expected calibration error over 15 equal bins of confidence, in 0..1.

    References:
        Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
    """
    log_q = log_softmax(scores.astype(np.float64), axis=1)
    confidence = np.exp(log_q.max(axis=1))
    correct = scores.argmax(axis=1) == labels
    # Bins are open below and closed above, as in the paper.
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(bins, correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def labels_differing(a: Scores, b: Scores) -> int:
    """Count the images that (N, K) scores put into different classes."""
    return int((a.argmax(axis=1) != b.argmax(axis=1)).sum())


def multiples_differing(a: Scores, b: Scores, step: float) -> int:
    """Count the images of which a score is nearest to another multiple of ``step``.

    The exported graph's scores are rounded sums of floats around the integer graph's multiples of
    its output scale.
    """
    multiples = [np.rint(scores.astype(np.float64) / step) for scores in (a, b)]
    return int((multiples[0] != multiples[1]).any(axis=1).sum())
