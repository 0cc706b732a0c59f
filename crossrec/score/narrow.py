"""Item matrices of fewer bits, by whose products a shortlist is found.

    narrowed = narrow(items_IW, "int8")
    shortlist_top_k([(queries_BW, items_IW)], overlaps, seen_S2, k, narrowed=[narrowed])

int8: each row, of an item and of a query, has a scale by which its largest number is 127. Sums are
whole numbers, so that nothing more is rounded. bf16: numbers of eight bits, and so are the sums.

Tensor suffixes: B users, I items of the domain, C items of a block or a part of one, W width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Precision = Literal["fp32", "bf16", "int8"]

NARROW_WIDTH = 32
"""Narrower products cost little, and what they add (popularity, age) may be large."""

ITEMS_A_PART = {"cpu": 1_024, "cuda": 1 << 20}
"""Whose sums are scaled at once, by device: on a CPU those of 256 users stay in its cache."""

ITEMS_A_BLOCK = 65_536
"""Quantised at once: more would take twice the memory of the matrix."""

HIGHEST = 127

STEP = 8
"""`torch._int_mm` wants multiples of it on GPUs, and there more rows than FEWEST_ROWS."""
FEWEST_ROWS = 17


@dataclass(frozen=True)
class Halved:
    """A matrix (I, W) of bfloat16."""

    rows_IW: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of the matrix."""
        return self.rows_IW.nbytes

    def slice(self, start: int, stop: int) -> "Halved":
        """Return some of the rows, in the same memory."""
        return Halved(self.rows_IW[start:stop])

    def score(
        self, queries_BW: Tensor, bounds: tuple[int, int], scores_BC: Tensor, is_first: bool
    ) -> None:
        """Write, or add where others were first, the products with items start..stop-1."""
        product_BC = torch.mm(queries_BW.bfloat16(), self.rows_IW[slice(*bounds)].T)
        scores_BC.copy_(product_BC) if is_first else scores_BC.add_(product_BC)


@dataclass(frozen=True)
class Quantised:
    """A matrix of about scales (I, 1) float32 times rows (I, W) int8."""

    rows_IW: Tensor
    scales_I1: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of the matrix."""
        return self.rows_IW.nbytes + self.scales_I1.nbytes

    def slice(self, start: int, stop: int) -> "Quantised":
        """Return some of the rows, in the same memory."""
        return Quantised(self.rows_IW[start:stop], self.scales_I1[start:stop])

    def score(
        self, queries_BW: Tensor, bounds: tuple[int, int], scores_BC: Tensor, is_first: bool
    ) -> None:
        """Write, or add where others were first, the products with items start..stop-1."""
        rows_BW, scales_B1 = quantise(queries_BW)
        first, stop = bounds
        for start in range(first, stop, ITEMS_A_PART[rows_BW.device.type]):
            part = slice(start, min(start + ITEMS_A_PART[rows_BW.device.type], stop))
            sums_BC = multiply(rows_BW, self.rows_IW[part])
            there_BC = scores_BC[:, part.start - first : part.stop - first]
            scales_1C = self.scales_I1[part].T
            if is_first:
                torch.mul(sums_BC, scales_1C, out=there_BC).mul_(scales_B1)
            else:
                there_BC.addcmul_(sums_BC * scales_1C, scales_B1)


Narrow = Halved | Quantised


def narrow(items_IW: Tensor, precision: Precision) -> Narrow | None:
    """Return a matrix (I, W) of float32 in fewer bits; None where it stays as it is."""
    if precision == "fp32" or items_IW.shape[1] < NARROW_WIDTH:
        return None
    if precision == "bf16":
        return Halved(items_IW.bfloat16())
    rows_IW = torch.empty_like(items_IW, dtype=torch.int8)
    scales_I1 = items_IW.new_empty(len(items_IW), 1)
    for start in range(0, len(items_IW), ITEMS_A_BLOCK):
        part = slice(start, start + ITEMS_A_BLOCK)
        rows_IW[part], scales_I1[part] = quantise(items_IW[part])
    return Quantised(rows_IW, scales_I1)


def quantise(rows_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers (N, W) int8, and scales (N, 1) by which they are about the rows.

    >>> rows, scales = quantise(torch.tensor([[0.5, -1.0], [0.0, 0.0]]))
    >>> rows.tolist(), (scales * 127).tolist()
    ([[64, -127], [0, 0]], [[1.0], [0.0]])
    """
    scales_N1 = rows_NW.abs().amax(1, keepdim=True) / HIGHEST
    whole_NW = rows_NW / scales_N1.clamp(min=torch.finfo(torch.float32).tiny)
    return whole_NW.round_().to(torch.int8), scales_N1


def multiply(rows_BW: Tensor, items_CW: Tensor) -> Tensor:
    """Return the products (B, C) int32 of whole numbers, on a GPU of padded matrices."""
    if rows_BW.is_cuda:
        return multiply_padded(rows_BW, items_CW)
    return torch._int_mm(rows_BW, items_CW.T)


def multiply_padded(rows_BW: Tensor, items_CW: Tensor) -> Tensor:
    """Do what `multiply` does with sizes that cuBLAS takes."""
    (users, width), items = rows_BW.shape, len(items_CW)
    more = -width % STEP
    rows_BW = pad(rows_BW, (0, more, 0, max(FEWEST_ROWS - users, 0)))
    items_CW = pad(items_CW, (0, more, 0, -items % STEP))
    return torch._int_mm(rows_BW, items_CW.T)[:users, :items]
