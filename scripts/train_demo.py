"""Train the bundled demo model from source distributions: ``python scripts/train_demo.py all --work DIR``.

Each stage reads what the one before it left in ``--work`` and can be run again alone; ``lm`` and ``sae`` go on from
their last checkpoint. Everything that can be chosen is in ``demo_model/settings.py``.

The bundled files were made on two CPU cores that had other work to do, with ``--minutes`` 52 for ``lm``, 10.5 for
``sae --only sae`` and 4 for ``sae --only sae_b``; ``config.json`` says how many tokens that was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_model import corpus, evaluate, export, lm, sae, text
from demo_model.settings import DEMO_DATA, SAES


def main() -> None:
    """Run one stage, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("corpus", "tokenizer", "lm", "sae", "export", "report", "all"))
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, checkpoints and logs")
    parser.add_argument("--minutes", type=float, help="end the schedule of the model, or of each SAE, after this long")
    parser.add_argument(
        "--out", type=Path, default=DEMO_DATA, help="where export and report write (default: the package)"
    )
    parser.add_argument("--only", choices=SAES, help="train only this SAE")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for training")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("corpus", "all"):
        corpus.build_corpus(args.work)
    if args.stage in ("tokenizer", "all"):
        text.train_tokenizer(args.work)
    if args.stage in ("lm", "all"):
        lm.train_lm(args.work, minutes=args.minutes, threads=args.threads)
    if args.stage in ("sae", "all"):
        for name in [args.only] if args.only else SAES:
            sae.train_sae(args.work, name, SAES[name], minutes=args.minutes, threads=args.threads)
    if args.stage in ("export", "all"):
        export.export(args.work, args.out)
    if args.stage in ("report", "all"):
        evaluate.report(args.work, args.out)


if __name__ == "__main__":
    main()
