"""The outcome of an import in a few lines."""

from pathlib import Path
from typing import Any


def describe(name: str, folder: Path, record: dict[str, Any]) -> str:
    """The record in `import.json` for people."""
    network, trips = record["network"], record["trips"]
    speed = f", {record['trips_per_s']:,.0f} traces/s" if record["trips_per_s"] else ""
    splits = ", ".join(f"{split} {number:,}" for split, number in trips["splits"].items())
    lines = [
        f"{name} is in {folder}",
        f"roads       {network['roads']:,}, {network['km']:,.1f} km, {network['relations']:,} relations",
        f"traces      {trips['traces_matched']:,} of {trips['traces']:,} matched ({trips['share_matched']:.1%}){speed}",
        f"trips       {splits}; {trips['first']} to {trips['last']}",
        f"mean trip   {trips['mean_roads']:.1f} roads, {trips['mean_km']:.2f} km, {trips['mean_minutes']:.1f} minutes",
    ]
    if record["noise_m"] is not None:
        lines.append(f"fixes       median {record['median_distance_m']:.0f} m from their roads")
    for title, counts in (("of the map", network["left_out"]), ("of the traces", record["left_out"])):
        if counts:
            lines.append(f"left out or mended, {title}:")
            lines += [f"  {number:9,}  {reason}" for reason, number in counts.items()]
    return "\n".join([*lines, f"Look at {folder / 'report.png'}"])
