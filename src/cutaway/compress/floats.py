"""Floating point in few bits: a sign, an exponent, a mantissa; what they reach, and how finely.

    value = (-1)^sign * 2^(exponent - bias) * (1 + mantissa / 2^m)      bias = 2^(e-1) - 1
    exponent 0: 2^(1 - bias) * mantissa / 2^m, so that steps stay equal around zero ("subnormal")

IEEE formats keep the last exponent for infinity and NaN. E4M3 keeps only its last number, as NaN (Micikevicius et al.
2022, "FP8 formats for deep learning", arXiv:2209.05433), and E2M1 keeps none (OCP Microscaling Formats, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class FloatFormat:
    """exponent, mantissa: bits. last: what the largest exponent is kept for; "nan": its last number alone."""

    name: str
    exponent: int
    mantissa: int
    last: Literal["ieee", "nan", "numbers"] = "ieee"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        top = 2**self.exponent - 1 - self.bias - (self.last == "ieee")
        return 2.0**top * (2 - 2.0**-self.mantissa * (1 + (self.last == "nan")))

    @property
    def smallest(self) -> float:
        """The smallest number above 0 that keeps its precision; below, steps are equal."""
        return 2.0 ** (1 - self.bias)

    @property
    def roundoff(self) -> float:
        """Largest relative error of rounding a number in between: half a step at 1."""
        return 2.0 ** -(self.mantissa + 1)

    def round(self, x: Tensor) -> Tensor:
        """x rounded to the nearest number, halves to the even one, beyond the largest to it. float64."""
        x = x.double()
        exponent = torch.frexp(x).exponent.clamp(min=2 - self.bias) - 1  # of the step's leading bit
        step = torch.ldexp(torch.ones_like(x), exponent - self.mantissa)
        return ((x / step).round() * step).clamp(-self.largest, self.largest)


FORMATS = {
    form.name: form
    for form in (
        FloatFormat("FP32", 8, 23),
        FloatFormat("BF16", 8, 7),
        FloatFormat("FP16", 5, 10),
        FloatFormat("E4M3", 4, 3, "nan"),
        FloatFormat("E5M2", 5, 2),
        FloatFormat("E2M1", 2, 1, "numbers"),
    )
}
