"""Programs of the comparison and their environments: this one, a separate one, or R."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: Packages of every separate environment.
PINNED = ("numpy==2.4.6", "scipy==1.17.1", "pandas==2.3.3")
FITS = Path(__file__).parent / "fits"


class MissingPeer(Exception):
    """Raised for a peer that is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Peer:
    """A program that fits mixed models, with its capabilities."""

    name: str
    script: str
    package: str  #: name in its registry
    version: str | None = None  #: pinned version; None for lmm_gpu and R packages
    sums: bool = False  #: True if it fits from summary statistics
    components: int = 99  #: maximum number of variance components

    @property
    def of_r(self) -> bool:
        return self.script.endswith(".R")

    def command(self, install: bool) -> list[str]:
        """Command line prefix that runs its script.

        Raises
        ------
        MissingPeer
            If it is not found and may not or cannot be installed.
        """
        if self.of_r:
            return [_rscript(self.package), "--vanilla", str(FITS / self.script)]
        return [str(_python(self, install)), str(FITS / self.script)]


PEERS = (
    Peer("lmm_gpu", "fit_lmm_gpu.py", "lmm-gpu", sums=True),
    Peer("flash-mm", "fit_flash_mm.py", "flash-mm", "0.1.0", sums=True),
    Peer("statsmodels", "fit_statsmodels.py", "statsmodels", "0.15.0"),
    Peer("mixedlm", "fit_mixedlm.py", "mixedlm", "1.3.0"),
    Peer("mixedlm-rs", "fit_mixedlm_rs.py", "mixedlm-rs", "0.2.0", components=1),
    Peer("lme-python", "fit_lme_python.py", "lme-python", "0.2.7"),
    Peer("interlace", "fit_interlace.py", "interlace-lme", "0.3.2"),
    Peer("lme4", "fit_lme4.R", "lme4"),
    Peer("lmerTest", "fit_lmertest.R", "lmerTest"),
    Peer("dream", "fit_dream.R", "variancePartition"),
    Peer("glmmTMB", "fit_glmmtmb.R", "glmmTMB"),
    Peer("FLASHMM", "fit_flashmm.R", "FLASHMM"),
)


def cache() -> Path:
    """Folder of the separate environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmm_gpu_benchmarks"


def _python(peer: Peer, install: bool) -> Path:
    try:
        if peer.version in (None, metadata.version(peer.package)):
            return Path(sys.executable)
    except metadata.PackageNotFoundError:
        if peer.version is None:  # ours, run from a checkout
            return Path(sys.executable)
    folder = cache() / f"{peer.package}-{peer.version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "ready").exists():
        if not install:
            raise MissingPeer(f"{peer.package} {peer.version} is not installed: leave out --no-install")
        _make(folder, python, [f"{peer.package}=={peer.version}", *PINNED])
    return python


def _make(folder: Path, python: Path, requirements: list[str]) -> None:
    print(f"installing {requirements[0]} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MissingPeer(f"pip could not install {requirements[0]}: {done.stderr.strip().splitlines()[-1]}")
    (folder / "ready").touch()


@functools.cache
def _rscript(package: str) -> str:
    rscript = shutil.which("Rscript")
    if rscript is None:
        raise MissingPeer("Rscript is not found (Debian: apt-get install r-base-core r-cran-lme4 r-cran-lmertest)")
    test = f'quit(status = !requireNamespace("{package}", quietly = TRUE))'
    if subprocess.run([rscript, "--vanilla", "-e", test], capture_output=True).returncode:
        raise MissingPeer(f"R has no package {package}")
    return rscript
