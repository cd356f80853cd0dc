"""Builds the engines' environments: `python -m drl.benchmarks.peers.install FOLDER TORCH...`.

TORCH is what pip is asked for first, since its usual build of PyTorch brings CUDA libraries along.
"""

import subprocess
import sys
import venv
from pathlib import Path

from drl.benchmarks.peers.registry import install_lines


def main(folder: Path, torch: list[str]) -> None:
    """Make what is missing. An engine that cannot be installed is reported, and others go on."""
    failed = []
    for name, requirements in install_lines():
        target = folder / name
        done = target / ".installed"
        if done.exists():
            continue
        print(f"installing {name} into {target}", flush=True)
        venv.create(target, with_pip=True)
        pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        for wanted in (torch, list(requirements)):
            if subprocess.run([*pip, *wanted], check=False).returncode:
                failed.append(name)
                break
        else:
            done.touch()
    if failed:
        sys.exit(f"error: could not install {', '.join(failed)}; the comparison leaves them out")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["torch"])
