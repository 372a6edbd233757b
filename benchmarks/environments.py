"""The virtual environments of the peers, each with pinned versions, made when they are first needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

TORCH = "torch==2.13.0"  # first and by itself, so that a CPU build is taken where pip finds one


@dataclass(frozen=True)
class Peer:
    """Another library: the program that runs it, and what its environment needs.

    ``alone`` are installed without their dependencies, ``removed`` are what others bring but nothing uses.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


PEERS = (
    Peer(
        "sae_vis 0.3.7",
        "run_sae_vis_0_3.py",
        alone=("sae-lens==5.2.1",),  # its own pins fit no newer torch; what it needs to run a dictionary is named below
        packages=(
            "sae-vis==0.3.7",
            "transformer-lens==2.18.0",
            "pyarrow==20.0.0",
            "simple-parsing==0.1.9",
            "frozendict==2.5.1",
            "tabulate==0.10.0",
            "transformers==4.57.6",
            "numpy==1.26.4",
        ),
    ),
    Peer(
        "sae-dashboard 0.8.0",
        "run_sae_dashboard.py",
        packages=(
            "sae-dashboard==0.8.0",
            "sae-lens==6.54.12",
            "transformer-lens==2.17.0",
            "pyarrow==20.0.0",
            "transformers==4.56.2",
            "numpy==1.26.4",
        ),
        removed=("torchvision", "torchaudio"),  # transformers imports them if they are there, built for CUDA or not
    ),
)


def python_of(peer: Peer, cache: Path) -> Path | None:
    """The interpreter of the peer's environment, if it was made, and made of these packages."""
    folder = _folder(peer, cache)
    try:
        made_of = json.loads((folder / "made-of.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    return folder / "bin" / "python" if made_of == _recipe(peer) else None


def prepare(peer: Peer, cache: Path) -> Path:
    """The interpreter of the peer's environment, made if need be (minutes, and about 1.5 GB with a CPU build of torch).

    Raises:
        subprocess.CalledProcessError: if pip cannot install something; what it says goes to the error stream.
    """
    ready = python_of(peer, cache)
    if ready is not None:
        return ready
    folder = _folder(peer, cache)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _pip(python, "install", TORCH)
    if peer.alone:
        _pip(python, "install", "--no-deps", *peer.alone)
    _pip(python, "install", TORCH, *peer.packages)
    if peer.removed:
        _pip(python, "uninstall", "--yes", *peer.removed)
    (folder / "made-of.json").write_text(json.dumps(_recipe(peer), indent=1) + "\n", encoding="utf-8")
    return python


def clean_environment() -> dict[str, str]:
    """Environment variables under which a peer finds its own packages alone, and asks no hub for anything."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return own | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


def _folder(peer: Peer, cache: Path) -> Path:
    return cache / "environments" / peer.name.replace(" ", "-")


def _recipe(peer: Peer) -> dict[str, object]:
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(peer).items()}
    return {**told, "torch": TORCH, "python": list(sys.version_info[:2])}


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr, env=clean_environment())
