"""Pictures of matplotlib as files; no window is ever opened."""

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def png_of(figure: Figure, dpi: float | str = "figure") -> bytes:
    """The figure as a PNG file, `dpi` pixels an inch (by default its own); it is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    plt.close(figure)
    return file.getvalue()
