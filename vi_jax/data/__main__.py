"""python -m vi_jax.data prepare NAME [--data-dir D] [--manual-dir M]."""

import argparse
import sys
from pathlib import Path

from vi_jax.data import prepared


def main(argv: list[str] | None = None) -> int:
    """Prepare a public set; exit status 1 and one message if that fails."""
    args = _parser().parse_args(argv)
    try:
        found = prepared.prepare(
            args.name, data_dir=args.data_dir, manual_dir=args.manual_dir
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{found.name} is prepared in {found.directory}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vi_jax.data")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="prepare a public set, once")
    prepare.add_argument("name", help="a set of tensorflow-datasets, such as mnist")
    prepare.add_argument(
        "--data-dir",
        type=Path,
        help="where sets lie (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    prepare.add_argument(
        "--manual-dir",
        type=Path,
        help="a folder with the set's files, downloaded by hand: no network is used",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
