"""Pictures of matplotlib as files; no window is ever opened."""

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def png_of(figure: Figure, dpi: float | None = None) -> bytes:
    """The figure as a PNG file, `dpi` pixels an inch (by default its own); it is closed."""
    file = io.BytesIO()
    if dpi is not None:
        figure.set_dpi(dpi)
    FigureCanvasAgg(figure).print_png(file)  # `savefig` goes through the drawing twice
    plt.close(figure)
    return file.getvalue()
