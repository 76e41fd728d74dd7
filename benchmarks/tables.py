"""Markdown tables of figures."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds labels and whose others hold numbers, formatted already.

    >>> print(markdown(("row", "ms"), [("legrad", "5.0")]))
    | row    |   ms |
    |:-------|-----:|
    | legrad |  5.0 |
    """
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align)
