"""Send damaged packets through the receive path: `python benchmarks/fuzz.py --packets 1000000`.

Each stream is cut, merged and flipped at random. What the splitter sees of it must be what a naive reader sees, however
it is cut into reads and paused, and the ledger must acknowledge exactly the messages that came. The first difference
ends the run with the seed and the stream.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.streams import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="of the first part, to repeat a run")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    start, left, seen = time.perf_counter(), arguments.packets, dict[str, int]()
    print(f"seed {seed}")
    while left > 0:
        part = min(left, 100_000)
        for name, count in fuzz(part, seed).items():
            seen[name] = seen.get(name, 0) + count
        left -= part
        seed += 1
        print(f"{arguments.packets - left:>10,} packets seen, {time.perf_counter() - start:6.1f} s: {seen}", flush=True)


if __name__ == "__main__":
    main()
