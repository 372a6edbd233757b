"""The command line: ``sae-vis demo``, ``html FILE``, ``site FILE`` and ``info FILE``. All but ``demo`` work without torch."""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_vis import __version__
from sae_vis._errors import InputError, SaeVisError

if TYPE_CHECKING:
    from sae_vis._prompt_comparison import PromptComparisonData
    from sae_vis._prompt_data import MultiPromptData
    from sae_vis.data_storing_fns import MultiFeatureData

DEMO_FILES = ("demo_feature_vis.html", "demo_prompt_vis.html", "demo_features.json")
# How a page and a saved file of ours begin: without --force each is overwritten by its like alone.
OWN_MARKS = {"page": b'<meta name="generator" content="sae_vis', "saved data": b'{"format": "sae_vis"'}
MARK_WITHIN = 4096  # bytes
SAVED = "what save_json wrote (.json or .json.gz), or the folder of a run with out_dir"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for an output closed early, 2 for an error, 130 for an interrupt."""
    parser = _parser()
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character must not end the program
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if args.command == "demo":
            _demo(args)
        elif args.command == "html":
            _html(args)
        elif args.command == "site":
            _site(args)
        else:
            _info(args)
        sys.stdout.flush()
    except SaeVisError as error:
        print(f"sae-vis: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sae-vis: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # e.g. `| head`; nothing may be written when Python closes its output at exit
        _write_no_more()
        return 1
    except OSError as error:  # e.g. a full disk
        _write_no_more()
        print(f"sae-vis: error: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _write_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sae-vis", description="Dashboards for the features of sparse autoencoders.")
    parser.add_argument("--version", action="version", version=f"sae-vis {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="make both views of the bundled model", description=_demo.__doc__)
    demo.add_argument(
        "-o", "--out", type=Path, default=Path(), metavar="DIR", help="folder to write to (default: here)"
    )
    demo.add_argument("--features", type=int, metavar="N", help="at most so many features (default: a good selection)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.add_argument("--force", action="store_true", help="overwrite files that sae-vis did not write")

    html = commands.add_parser("html", help="draw the page of a saved file", description=_html.__doc__)
    html.add_argument("file", type=Path, metavar="FILE", help=SAVED)
    html.add_argument("-o", "--out", type=Path, metavar="OUT.html", help="default: the name of FILE, with .html")
    html.add_argument("--force", action="store_true", help="overwrite a file that sae-vis did not write")
    html.add_argument("--processes", type=int, metavar="N", help="how many draw the features (default: as is fast)")

    site = commands.add_parser("site", help="make a folder for a static host", description=_site.__doc__)
    site.add_argument("file", type=Path, metavar="SOURCE", help=SAVED)
    site.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: the name of SOURCE, with _site")
    site.add_argument("--processes", type=int, metavar="N", help="how many draw the features (default: as is fast)")

    info = commands.add_parser("info", help="say what a saved file holds", description=_info.__doc__)
    info.add_argument("file", type=Path, metavar="FILE", help=SAVED)
    return parser


# --- the commands ------------------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> None:
    """Make the feature-centric and the prompt-centric page of the bundled model on its bundled text."""
    if args.features is not None and args.features < 1:
        raise InputError(f"--features must be at least 1, got {args.features}.")
    _make_folder(args.out)
    for name in DEMO_FILES:
        _check_may_overwrite(args.out / name, "saved data" if name.endswith(".json") else "page", force=args.force)
    if not args.quiet:
        print("Loading the bundled model ...", flush=True)
    from sae_vis import _demo as bundled  # torch, and seconds of imports

    paths = bundled.run(args.out, features=args.features, quiet=args.quiet)
    print("\nWritten:")
    for path in paths:
        print(f"  {_size(path.stat().st_size):>9}  {path}")
    print("\nOpen the .html files in a browser (they need no network), and see README.md for your own model.")


def _html(args: argparse.Namespace) -> None:
    """Draw the page of a file that save_json wrote, or of a folder of a run; no model and no torch are needed."""
    out = args.out or _beside(args.file, ".html")
    _check_may_overwrite(out, "page", force=args.force)
    data = _load(args.file)
    if hasattr(data, "prompt_token_ids"):  # few features, and one process
        data.save_html(out)
    else:
        data.save_html(out, processes=args.processes)
    size = f"  {_size(out.stat().st_size):>9}  {out}\n" if out.is_file() else ""
    print(f"{size}Open it in a browser: it is one file and needs no network.", file=sys.stdout if size else sys.stderr)


def _site(args: argparse.Namespace) -> None:
    """Make a folder whose index.html loads features when they are asked for, from disk or any host; no torch is needed."""
    out = args.out or _beside(args.file, "_site")
    from sae_vis._site import size_of

    data = _load(args.file)
    if not hasattr(data, "save_site"):
        raise InputError(f"{str(args.file)!r} holds a prompt, which is one page: draw it with `sae-vis html`.")
    data.save_site(out, processes=args.processes)
    n_files, n_bytes = size_of(out)
    print(f"  {_size(n_bytes):>9}  {out} ({n_files:,} files)")
    print("Open its index.html in a browser, or put the folder on any static host.")


def _info(args: argparse.Namespace) -> None:
    """Say what a file that save_json wrote holds, or a folder of a run, and where its numbers come from."""
    data = _load(args.file)
    files = args.file.iterdir() if _is_dir(args.file) else [args.file]
    print(f"{args.file} ({_size(sum(map(_bytes_of, files)))})")
    facts = _facts(data)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")


def _load(path: Path) -> MultiFeatureData | MultiPromptData | PromptComparisonData:
    from sae_vis import _json
    from sae_vis._prompt_comparison import PromptComparisonData
    from sae_vis._prompt_data import MultiPromptData
    from sae_vis.data_storing_fns import MultiFeatureData

    if _is_dir(path):
        return MultiFeatureData.load_dir(path)
    kinds: list[type] = [MultiFeatureData, MultiPromptData, PromptComparisonData]
    data: MultiFeatureData | MultiPromptData | PromptComparisonData = _json.load_any(kinds, path)
    return data


def _facts(data: MultiFeatureData | MultiPromptData | PromptComparisonData) -> dict[str, str]:
    """The lines of ``info``: a name and a value each."""
    provenance = data.provenance
    fields = ("prompt_data_dict", "compared_dict", "feature_data_dict")
    lines = next(getattr(data, name) for name in fields if hasattr(data, name))
    facts = {"kind": type(data).__name__}
    for name, field in (("prompt", "prompt_token_ids"), ("other prompt", "other_token_ids")):
        prompt_ids = getattr(data, field, None)
        if prompt_ids is not None:
            text = "".join(data.vocab.get(token, "?") for token in prompt_ids)
            facts[name] = f"{len(prompt_ids)} tokens: {_shortened(text)}"
    facts |= {
        "features": f"{len(lines)}: {_shortened(', '.join(map(str, lines)))}" if lines else "none",
        "density": _spread([feature.activations.density for feature in lines.values()]),
        "model": provenance.model,
        "hook point": f"{provenance.hook_point} ({provenance.d_in:,} wide, {provenance.d_hidden:,} features)",
        "tokens": f"{provenance.n_rows:,} rows of {provenance.seq_len:,}, {provenance.n_counted:,} counted",
        "vocabulary": f"{len(data.vocab):,} token texts",
        "direct effect": " — ".join(filter(None, (provenance.direct_effect, provenance.direct_effect_reason))),
    }
    facts |= {f"{name} version": version for name, version in provenance.versions.items()}
    facts |= {f"{name} digest": digest for name, digest in provenance.digests.items()}
    return facts


# --- small helpers ---------------------------------------------------------------------------------------------------


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise InputError(f"--out must be a folder in one that is there, got {str(path)!r}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--out must be a folder, got {str(path)!r}: {reason}.") from None


def _check_may_overwrite(path: Path, kind: str, *, force: bool) -> None:
    """Raise where ``path`` is a file that is none of this kind of ours; nothing replaces saved data by a page."""
    if kind == "page":
        from sae_vis import _json

        _json.check_page_path(path)
    if force:
        return
    try:
        if not path.is_file():
            return
        with path.open("rb") as stream:
            start = stream.read(MARK_WITHIN)
    except OSError as error:
        raise InputError(f"Cannot read {str(path)!r}, which would be overwritten: {error.strerror}.") from None
    if start and OWN_MARKS[kind] not in start:
        raise InputError(f"{str(path)!r} is no {kind} of sae-vis: give --force to overwrite it, or another --out.")


def _beside(source: Path, ending: str) -> Path:
    """A name beside the source's, with another ending."""
    source = source.resolve() if _is_dir(source) else source  # "." has no name
    if not source.name:
        raise InputError(f"Give --out: there is no place beside {str(source)!r}.")
    return source.with_name(_stem(source) + ending)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long a name, or nobody may look: opening it says so
        return False


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a run that goes on has renamed its temporary file, or a link leads nowhere
        return 0


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(".json") or name


def _shortened(text: str, at_most: int = 70) -> str:
    """One line that any terminal can show."""
    line = text if text.replace(", ", "").isdigit() else repr(text)
    return line if len(line) <= at_most else f"{line[: at_most - 4]} ..."


def _spread(densities: list[float]) -> str:
    fired = [density for density in densities if density > 0]
    silent = f"{len(densities) - len(fired)} never active"
    if not fired:
        return silent
    return f"median {statistics.median(fired):.3g}, from {min(fired):.3g} to {max(fired):.3g}; {silent}"


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "kB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
