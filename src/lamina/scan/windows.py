"""Windows of calibration text: what layers are scored on."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Windows:
    """Token ids without padding."""

    ids: "torch.Tensor"
    """(windows, tokens)."""

    positions: "torch.Tensor | None"
    """Of each token in its document, (windows, tokens); None where each window is one text."""

    counted: "torch.Tensor"
    """Whether a token's prediction counts, (windows, tokens); the first one's never does."""

    @staticmethod
    def joined(ids: "torch.Tensor") -> "Windows":
        """Return windows that are each one text, of which every next token counts.

        Args:
            ids: Token ids, (windows, tokens).
        """
        import torch

        counted = torch.ones_like(ids, dtype=torch.bool)
        counted[:, 0] = False
        return Windows(ids, None, counted)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens in one window."""
        return int(self.ids.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        digest = sha256(f"{tuple(self.ids.shape)}".encode())
        for tensor in (self.ids, self.positions, self.counted):
            digest.update(b"-" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def split(self, size: int) -> "Iterator[Windows]":
        """Give the windows in portions of at most `size`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            positions = None if self.positions is None else self.positions[part]
            yield Windows(self.ids[part], positions, self.counted[part])
