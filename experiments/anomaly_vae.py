"""Anomaly detection by a VAE: one class of digits, one set against another, tables.

python -m experiments.anomaly_vae one-class
python -m experiments.anomaly_vae ood
python -m experiments.anomaly_vae tables
"""

import importlib
import sys

import tyro

PARTS = {"one-class": "oneclass", "ood": "ood", "tables": "tables"}


def main(argv: list[str]) -> None:
    """Run the part that the first argument names, with the knobs that follow."""
    if not argv or argv[0] not in PARTS:
        asked_for_help = argv[:1] in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked_for_help else sys.stderr)
        raise SystemExit(0 if asked_for_help else 2)
    part = importlib.import_module(f"experiments.anomaly_{PARTS[argv[0]]}")
    program = f"python -m experiments.anomaly_vae {argv[0]}"
    tyro.cli(part.main, prog=program, description=part.__doc__, args=argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
