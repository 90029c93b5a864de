"""Pack the lines of results that are published: all of a folder's results*.jsonl in one results*.jsonl.gz.

    python -m benchmarks.pack docs/results/hard

Whatever reads lines reads packed ones too: ``lidar compare --table``, and every benchmark that goes on from what is
there. A person reads them with ``zcat``.
"""

import argparse
from pathlib import Path

from lidar_sampling.runs._lines import pack, read_objects


def main() -> None:
    """Pack each folder, and say where its lines are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that hold results*.jsonl")
    for folder in parser.parse_args().folders:
        path = pack(folder)
        print(f"{path}: {len(read_objects(path.with_suffix('')))} lines, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
