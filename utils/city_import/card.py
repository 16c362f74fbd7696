"""The card of an imported data set: what it is, where it is from, and under which licence."""

from typing import Any

LICENCE = (
    "Map data © OpenStreetMap contributors, available under the Open Database License (ODbL) 1.0: "
    "https://www.openstreetmap.org/copyright"
)


def dataset_card(name: str, record: dict[str, Any]) -> str:
    """A README for the folder of the data set, from the record in `import.json`."""
    network, trips, sources = record["network"], record["trips"], record["sources"]
    rows = [
        ("roads", f"{network['roads']:,} (each direction of a street is one)"),
        ("relations", f"{network['relations']:,}"),
        ("length of the network", f"{network['km']:,.1f} km"),
        ("trips", ", ".join(f"{split} {number:,}" for split, number in trips["splits"].items())),
        ("from traces", f"{trips['traces_matched']:,} of {trips['traces']:,} ({trips['share_matched']:.1%})"),
        ("roads per trip", f"mean {trips['mean_roads']:.1f}, at most {trips['max_roads']}"),
        ("mean trip", f"{trips['mean_km']:.2f} km, {trips['mean_minutes']:.1f} minutes"),
        ("dates", f"{trips['first']} to {trips['last']}, by the clock on the wall"),
        ("users", f"{trips['users']:,}" if trips["users"] else "not given"),
    ]
    if record["noise_m"] is not None:
        rows.append(("noise of the fixes", f"{record['noise_m']:g} m (standard deviation, estimated or given)"))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    left_out = "\n".join(f"| {what} | {number:,} |" for what, number in record["left_out"].items())
    return f"""# {name}

A road network and trips in the format of the public HOSER data, imported by tools/import_city.py on {record["date"]}.

| | |
|---|---|
{table}

## Sources and licence

- Roads: `{sources["map"]["file"]}` ({sources["map"]["digest"]}). {LICENCE}. What is derived from it, this folder,
  is under the same licence.
- Trips: `{sources["traces"]["file"]}` ({sources["traces"]["digest"]}). Their terms are those of whoever recorded them;
  traces of people are personal data.

## Files

- `roadmap.geo`, `roadmap.rel`: roads, and which road can follow which. `roads.csv`: OSM ways and nodes of each road.
- `train.csv`, `val.csv`, `test.csv`: trips, split by {record["options"]["split_by"]}; `traj_id` numbers the traces in
  the order of their file.
- `import.json`: options and counts. `report.png`: whether the matching went well.

## Left out, or cut

| | |
|---|---|
{left_out}
"""
