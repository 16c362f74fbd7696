"""From OpenStreetMap and GPS traces to a data set: `roadmap.geo`, `roadmap.rel`, `train.csv`, `val.csv`, `test.csv`."""
