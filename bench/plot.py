"""The plot of claim latency against a pool's size and its history, as one SVG."""

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

_TITLES = {"ready": "ready VMs in the pool", "history": "claims behind, one old snapshot held open"}


def draw(curves: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Each curve is (x, p50 ms, p99 ms), drawn over a logarithmic x; an x of 0 stands at the left edge."""
    mpl.rcParams["svg.hashsalt"] = "emberpool"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text as text
    figure, axes = plt.subplots(1, len(_TITLES), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, _TITLES.items(), strict=True):
        points = curves[name]
        x = [max(1.0, point[0]) for point in points]
        axis.plot(x, [point[1] for point in points], marker="o", label="p50")
        axis.plot(x, [point[2] for point in points], marker="s", label="p99")
        axis.set_xscale("log")
        axis.set_xlabel(title)
        axis.grid(visible=True, alpha=0.3)
    highest = max(point[2] for points in curves.values() for point in points)
    axes[0].set_ylim(0, highest * 1.1)
    axes[0].set_ylabel("one claim over HTTP, ms")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
