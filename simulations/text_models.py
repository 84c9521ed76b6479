"""A small transformer that classifies sequences of tokens.

Pre-LN, as GPT-2 has it: x + attention(norm(x)), then x + mlp(norm(x)), and a last norm. The
projections to queries, keys and values are layers of their own, with biases. There is no dropout.

Padding (token 0) is masked: no other token attends to it and the mean over positions leaves it
out, so it gets no gradient anywhere.
"""

from __future__ import annotations

import torch
from torch import nn

from fl_audit.errors import InputError

PADDING = 0


class TokenTransformer(nn.Module):
    """Token and position embeddings, blocks, the mean over tokens, and a linear head.

    Raises:
        InputError: If a size is below 1, or the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        num_classes: int,
        width: int,
        heads: int,
        layers: int,
        causal: bool,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "width": width, "heads": heads, "layers": layers}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(
                    f"model.{name}", value, "must be at least 1", "Give a number of 1 or more."
                )
        if width % heads:
            raise InputError(
                "model.heads",
                heads,
                f"must divide the width, {width}",
                "Change model.width or model.heads.",
            )
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.causal = causal

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, classes), of token numbers in any dtype, shape (n, at most length)."""
        tokens = inputs.long()
        place = torch.arange(tokens.shape[1], device=tokens.device)
        is_token = tokens != PADDING
        sees = self._sees(is_token, place)
        hidden = self.tokens(tokens) + self.positions(place)
        for block in self.blocks:
            hidden = block(hidden, sees)
        weights = is_token.to(hidden.dtype).unsqueeze(-1)
        mean = (self.norm(hidden) * weights).sum(1) / weights.sum(1).clamp(min=1)
        logits: torch.Tensor = self.head(mean)
        return logits

    def _sees(self, is_token: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Which position attends to which, shape (n, 1, length, length).

        Each sees itself, padding too: nobody reads what comes of that, and a row of nothing would
        be NaN.
        """
        sees = is_token[:, None, None, :] | (place[:, None] == place)
        return sees & (place[:, None] >= place) if self.causal else sees


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(hidden)
        query, key, value = (self._split(f(normed)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        # written out: torch's fused attention has no second derivative, which inversion needs
        weights = scores.masked_fill(~sees, float("-inf")).softmax(-1)
        hidden = hidden + self.out((weights @ value).transpose(1, 2).flatten(2))
        after: torch.Tensor = hidden + self.mlp(self.norm2(hidden))
        return after

    def _split(self, values: torch.Tensor) -> torch.Tensor:
        """(n, length, width) to (n, heads, length, width of a head)."""
        num, length, width = values.shape
        return values.reshape(num, length, self.heads, width // self.heads).transpose(1, 2)
