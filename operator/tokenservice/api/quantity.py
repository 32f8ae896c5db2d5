"""Quantities of resources as Kubernetes writes them: `500m`, `1Gi`, `2e3`.

Source of the grammar: resource.Quantity of k8s.io/apimachinery.
"""

from __future__ import annotations

import re
from decimal import Decimal

PATTERN = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]+))?"
)
"""A quantity in full: sign, digits with at most one point, then a binary or decimal suffix or an exponent."""

_POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FACTORS = {suffix: Decimal(10) ** power for suffix, power in _POWERS.items()}
_FACTORS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
_DIGITS = 3
"""Of an exponent, its sign included: what has more is no amount of anything, and may be too long a number."""


def amount(text: str) -> Decimal | None:
    """How much it is, of cores, bytes or devices; None for what cannot be read, or is less than nothing."""
    found = PATTERN.fullmatch(text)
    if found is None or len(found["exponent"] or "") > _DIGITS:
        return None
    factor = _FACTORS[found["suffix"]] if found["suffix"] else Decimal(10) ** int(found["exponent"] or 0)
    read = Decimal(found["number"]) * factor
    return read if read >= 0 else None
