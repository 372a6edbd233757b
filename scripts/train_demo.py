"""Train the bundled demo model from source distributions: ``python scripts/train_demo.py all --work DIR``.

Each stage reads what the one before it left in ``--work`` and can be run again alone; ``lm`` and ``sae`` go on from
their last checkpoint. Everything that can be chosen is in ``demo_model/settings.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_model import corpus, text


def main() -> None:
    """Run one stage, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("corpus", "tokenizer", "lm", "sae", "export", "report", "all"))
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, checkpoints and logs")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("corpus", "all"):
        corpus.build_corpus(args.work)
    if args.stage in ("tokenizer", "all"):
        text.train_tokenizer(args.work)


if __name__ == "__main__":
    main()
