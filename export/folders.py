"""Folders that appear whole or not at all."""

import shutil
import tempfile
from pathlib import Path


def replace_folder(finished: Path, destination: Path) -> None:
    """Move a finished folder to its place, and remove the one that was there.

    Both must lie on one file system. If the move fails, the earlier folder is in its place again.
    """
    if not destination.exists():
        finished.rename(destination)
        return
    prefix = f".{destination.name}.replaced-"
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
    destination.rename(aside / destination.name)
    try:
        finished.rename(destination)
    except BaseException:
        (aside / destination.name).rename(destination)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
