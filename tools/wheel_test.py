"""Build the sdist, the wheel from that sdist, and try the wheel in a fresh virtual environment.

The environment gets what a board gets: no extra, so neither torch nor numba nor Amaranth.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

__all__ = ["build", "clean_copy", "main"]

ROOT = Path(__file__).resolve().parent.parent

# What runs on a board must import, and must not drag a heavy package in.
BOARD_IMPORTS = """
import importlib.util, pkgutil, sys
import flightllm, flightllm.spec, flightllm.runtime
print("imported from", flightllm.__file__)
heavy = [n for n in ("torch", "numba", "scipy", "amaranth") if importlib.util.find_spec(n)]
sys.exit(f"a board's environment holds {heavy}" if heavy else 0)
"""


def clean_copy(folder: Path) -> Path:
    """Copy what git would commit of this checkout, links as links, to ``folder``; return it.

    Left-over build output (an old egg-info lists files) would hide a file that no rule packs.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):  # a deleted file is still in the index
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(folder: Path) -> tuple[Path, Path]:
    """Build this checkout into ``folder``; return the sdist and the wheel made from it."""
    source = clean_copy(folder / "source")
    # `build` without --sdist or --wheel makes the wheel from the sdist, in a scratch folder.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"the build failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def main() -> int:
    """Run the whole check; an exception or a non-zero status means it failed."""
    with tempfile.TemporaryDirectory(prefix="flightllm-wheel-") as scratch:
        folder = Path(scratch)
        sdist, wheel = build(folder)
        print(f"{sdist.name} -> {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB")
        venv.create(folder / "venv", with_pip=True)
        binaries = folder / "venv" / "bin"
        pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet"]
        # Run away from the checkout, so that only the wheel can answer.
        for command in (
            [*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)],
            [str(binaries / "flightllm"), "--version"],
            [str(binaries / "flightllm"), "boards"],
            [str(binaries / "python"), "-c", BOARD_IMPORTS],
        ):
            if status := subprocess.run(command, cwd=folder).returncode:
                print(f"status {status} from: {' '.join(command[:4])}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
