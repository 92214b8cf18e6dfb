"""Fail if the notebooks are not clean or the package is not what they export.

`nbdev_test` passes on a stale package, and execution counts in a notebook make every diff unreadable. This
script does both steps on a copy and compares the result with the working tree, not with git, so it also works
with uncommitted changes and modifies nothing."""
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEEP = ("nbs", "cryptolstm", "settings.ini")


def copy(to: Path) -> None:
    "Copy the files that nbdev reads and writes."
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.nbi", "*.nbc")
    for name in KEEP:
        source = ROOT / name
        (
            shutil.copytree(source, to / name, ignore=ignore)
            if source.is_dir()
            else shutil.copy(source, to / name)
        )


def changed(folder: Path, part: str) -> list[str]:
    "Files under `part` that differ between the repository and the copy, or exist in only one of them."
    names = {str(p.relative_to(base)) for base in (ROOT, folder) for p in (base / part).rglob("*")
             if p.is_file() and "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}
    def same(n):
        return ((ROOT / n).is_file()
            and (folder / n).is_file()
            and filecmp.cmp(ROOT / n, folder / n, shallow=False))
    return sorted(n for n in names if not same(n))


def main() -> int:
    bin_dir = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d) / ROOT.name
        folder.mkdir()
        copy(folder)
        env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
        for command, part, cure in (
            ("nbdev_clean", "nbs", "run nbdev_clean"),
            ("nbdev_export", "cryptolstm", "edit the notebooks, then run nbdev_export"),
        ):
            subprocess.run(
                [str(bin_dir / command)], cwd=folder, check=True, env=env, stdout=subprocess.DEVNULL
            )
            if names := changed(folder, part):
                print(
                    f"{command} would change {', '.join(names)}; {cure} and commit the result",
                    file=sys.stderr,
                )
                return 1
    print("notebooks are clean and the package is what they export")
    return 0


if __name__ == "__main__":
    sys.exit(main())
