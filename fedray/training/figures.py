"""Figures of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedray.types import FedrayError


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Mean weights from 0 to 1. values: a row per name in `rows`."""

    values: tuple[tuple[float, ...], ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    title: str

    def draw(self, path: Path, name: str, zoo: str) -> Path:
        """Draw it to a file. Raises FedrayError where that cannot be written."""
        from matplotlib.figure import Figure  # takes a second to import: only the process that draws needs it

        high, wide = len(self.rows), len(self.columns)
        figure = Figure(figsize=(max(5.0, 0.7 * wide + 2.5), max(2.8, 0.42 * high + 1.4)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(wide), list(self.columns), fontsize=8)
        axes.set_yticks(range(high), list(self.rows), fontsize=8)
        if high * wide <= 400:
            for y, row in enumerate(self.values):
                for x, value in enumerate(row):
                    color = "white" if value < 0.6 else "black"
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_title(f"{self.title}\n{name}  ·  zoo={zoo}", fontsize=10)
        figure.colorbar(image, ax=axes, label="mean weight")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            message = f"{path} cannot be written ({error.strerror}); make room, or choose output=DIR"
            raise FedrayError(message) from error
        return path
