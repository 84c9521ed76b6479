"""A small text federation: sequences of tokens, and a model with an embedding in front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

VOCABULARY = 2000
PADDING = 0


def sequences(
    num: int = 1500, length: int = 12, classes: int = 4
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences of 6 to `length` tokens, frequent and rare ones, padded; and their classes."""
    rng = np.random.default_rng(20_261_125)
    labels = rng.integers(classes, size=num)
    chance = 1 / (np.arange(1, VOCABULARY) + 20)  # Zipf, without the padding token
    tokens = rng.choice(np.arange(1, VOCABULARY), size=(num, length), p=chance / chance.sum())
    tokens[:, 0] = 1 + labels  # something to learn
    tokens[np.arange(length) >= rng.integers(6, length + 1, size=(num, 1))] = PADDING
    return tokens, labels


class MeanOfEmbeddings(nn.Module):
    """Bag of tokens: inputs are token numbers in float32."""

    def __init__(self, num_classes: int, width: int, padding: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=padding)
        self.head = nn.Linear(width, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, classes)."""
        logits: torch.Tensor = self.head(self.embedding(inputs.long()).mean(dim=1))
        return logits


def mean_of_embeddings(
    *, input_shape: Sequence[int], num_classes: int, width: int = 8, padding: int | None = PADDING
) -> nn.Module:
    """The model's factory; sequences of any length fit."""
    assert len(input_shape) == 1
    return MeanOfEmbeddings(num_classes, width, padding)
