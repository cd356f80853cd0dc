"""Folders that appear whole or not at all."""

import shutil
import tempfile
from pathlib import Path

_ASIDE = ".replaced-"


def replace_folder(finished: Path, destination: Path) -> None:
    """Move a finished folder to its place, and remove the one that was there.

    Both must lie on one file system. If the move fails, the earlier folder is in its place again.
    If the process is killed between two moves, `restore_replaced` puts it there.
    """
    if not destination.exists():
        finished.rename(destination)
        return
    prefix = f".{destination.name}{_ASIDE}"
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
    destination.rename(aside / destination.name)
    try:
        finished.rename(destination)
    except BaseException:
        (aside / destination.name).rename(destination)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def restore_replaced(parent: Path) -> None:
    """Mend what `replace_folder` left where it was killed.

    A folder that has nothing in its place comes back, and the others are removed. Nobody else may
    replace folders there meanwhile.
    """
    for aside in sorted(parent.glob(f".*{_ASIDE}*")):
        name = aside.name.removeprefix(".").rpartition(_ASIDE)[0]
        if (aside / name).exists() and not (parent / name).exists():
            (aside / name).rename(parent / name)
        shutil.rmtree(aside, ignore_errors=True)
