"""The benchmarks that ``fastrnn bench`` runs: one file a row of the grid, imported as ``fastrnn.bench``."""
