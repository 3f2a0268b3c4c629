"""What `compare` found, as a table, as JSON, and as a picture."""

from __future__ import annotations

import math
import os
import textwrap
from typing import Any

__all__ = ["Comparison"]

WIDTH = 110
NAME_WIDTH = 28


class Comparison:
    """Two models, layer by layer.

    Attributes:
        layers: in order, one dict a layer with the keys

            - name: its path; "#2" and so on where a module is called again;
            - kinds: the class in the first and in the second model, None where it is missing;
            - differing, max_steps, sqnr_db: on the models' own inputs, so that errors pile up. Share of integers that
              differ, largest difference in steps, and ``10·log10(Σ ref² / Σ (ref - x)²)``, infinite where all are
              equal. Where one side is float, its values are quantized to the other's grid; where both are, differing
              is the share of values beyond the float bound, and max_steps counts in units of it. None where the layer
              is missing;
            - same_inputs: the same three, the second model's layer given the first model's input;
            - unit: "steps" or "float bound";
            - probes: ``{"values", "differing"}`` of inputs made for the layer (ties, ends, overflow); None without any.
        first_divergent: ``{"layer", "cause", "evidence"}`` of the first layer that differs on the same inputs or on
            probes; None if there is none. Where one model is float and the other works on integers, a layer that is
            wrong comes before those that differ only as rounding to a grid explains.
    """

    def __init__(self, layers: list[dict[str, Any]], first_divergent: dict[str, str] | None) -> None:
        self.layers = layers
        self.first_divergent = first_divergent

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`: as the attributes, with null where a SQNR is infinite (nothing differs, or no signal)."""
        return {"layers": [_finite(row) for row in self.layers], "first_divergent": self.first_divergent}

    def __str__(self) -> str:
        return _table(self)

    __repr__ = __str__

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the share of differing values by layer, on own and on the same inputs, into a file.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
        draw(self, ax)
        fig.savefig(path, dpi=120)
        plt.close(fig)


def draw(comparison: Comparison, ax: Any) -> None:
    """The picture, on axes."""
    rows = [row for row in comparison.layers if row["differing"] is not None]
    places = range(len(rows))
    own = [100 * row["differing"] for row in rows]
    same = [100 * row["same_inputs"]["differing"] for row in rows]
    ax.bar([p - 0.2 for p in places], own, 0.38, label="own inputs (errors pile up)", color="#9aa5b1")
    ax.bar([p + 0.2 for p in places], same, 0.38, label="same inputs", color="#d1495b")
    names = [row["name"] for row in rows]
    ax.set_xticks(list(places), names, rotation=90 if max(map(len, names), default=0) * len(names) > 70 else 0)
    ax.set(xlabel="layer", ylabel="differing values (%)", ylim=(0, max([*own, *same, 1]) * 1.3))
    found = comparison.first_divergent
    if found and found["layer"] in names:
        place = names.index(found["layer"])
        height = max(own[place], same[place])
        ax.annotate(f"first: {found['cause']}", (place, height), (0, 6), textcoords="offset points", ha="center")
    ax.legend(loc="upper left")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- as text ---------------------------------------------------------------------------------------------------------


def _table(comparison: Comparison) -> str:
    width = min(max([len(row["name"]) for row in comparison.layers] + [5]), NAME_WIDTH)
    kinds = min(max([len(_kinds(row)) for row in comparison.layers] + [5]), WIDTH - width - 66)
    group = f"{'':{width + kinds + 4}}{'--------- own inputs ---------':>30}  {'-------- same inputs ---------':>30}"
    columns = f"{'differ':>8} {'largest':>10} {'SQNR dB':>9}"
    header = f"{'layer':{width}}  {'kind':{kinds}}  {columns:>30}  {columns:>30}"
    lines = [group.rstrip(), header, "-" * len(header)]
    for row in comparison.layers:
        name = row["name"] if len(row["name"]) <= width else "…" + row["name"][1 - width :]
        lines.append(f"{name:{width}}  {_kinds(row)[:kinds]:{kinds}}  {_cells(row)}".rstrip())
    return "\n".join([*lines, "-" * len(header), *_words(comparison)])


def _kinds(row: dict[str, Any]) -> str:
    first, second = row["kinds"]
    return first if first == second else f"{first or '(missing)'} / {second or '(missing)'}"


def _cells(row: dict[str, Any]) -> str:
    if row["differing"] is None:
        return "missing in one of the models"
    unit = "" if row["unit"] == "steps" else "×"
    return "  ".join(
        f"{_percent(part['differing']):>8} {part['max_steps']:>9.4g}{unit or ' '} {_decibels(part['sqnr_db']):>9}"
        for part in (row, row["same_inputs"])
    )


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2f}%" if share >= 0.0001 else "<0.01%"


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "equal" if value > 0 else "no signal"


def _words(comparison: Comparison) -> list[str]:
    lines = []
    if any(row["unit"] != "steps" for row in comparison.layers):
        lines.append("×: both sides real; in units of the float bound, 2.2e-7·(Σ|x||w| + |b|) of a Linear or Conv,")
        lines.append("   one float32 step elsewhere; what lies within it does not count as differing")
    found = comparison.first_divergent
    if found is None:
        probed = sum(row["probes"]["values"] for row in comparison.layers if row["probes"])
        return [*lines, f"no layer differs, on the same inputs or on {probed:,} probed values"]
    told = f"first layer that differs: {found['layer']}, cause: {found['cause']}. {found['evidence']}"
    return [*lines, *textwrap.wrap(told, WIDTH, subsequent_indent="  ")]
