"""Bundle: what a device opens. A directory or zip with a manifest, checked before anything loads.

The manifest's rules stand in `edgekit.runtime.manifest`, reading from disk in
`edgekit.runtime.container`.
"""

from __future__ import annotations

import importlib.metadata
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import BORDERS, NO_VNNI, scheme_id
from edgekit.runtime._closing import Closing
from edgekit.runtime.container import Container, open_container
from edgekit.runtime.cpu import lacks_vnni, unmet
from edgekit.runtime.golden import (
    GoldenCheck,
    check_golden,
    unpack_golden,
    unpack_pictures,
)
from edgekit.runtime.golden_sounds import unpack_sounds
from edgekit.runtime.manifest import (
    MANIFEST,
    BundleArtifact,
    FileEntry,
    Manifest,
    canonical_json,
    directory_digest,
    parse_manifest,
)
from edgekit.runtime.preprocess import (
    AudioPreprocess,
    ImagePreprocess,
    Preprocess,
    preprocess_from_json,
)
from edgekit.runtime.session import Array, Session, open_session
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature

__all__ = ["Bundle", "BundleArtifact", "FileEntry", "canonical_json", "directory_digest"]


class Bundle(Closing):
    """A checked bundle. Use it as a context manager, or call `close`.

    ```python
    with Bundle.open("mobilenet.zip") as bundle:
        session = bundle.session(bundle.artifact(target="tflite", scheme="w8a8"), threads=4)
        outputs = session.run({"image": picture})
    ```

    Attributes:
        path: where it lies.
        manifest: the whole manifest, as JSON gives it.
        signature: the model's inputs and outputs; an artifact with a picture border has its own.
        artifacts: all of them, in the manifest's order.
        digest: one hash for the whole bundle, the manifest included (`directory_digest`).
    """

    def __init__(self, path: Path, container: Container, manifest: Manifest) -> None:
        """Not for callers: use `Bundle.open`, which checks."""
        self.path = path
        self.manifest: Mapping[str, Any] = manifest.data
        self.signature: Signature = manifest.signature
        self.artifacts = manifest.artifacts
        self._files = manifest.files
        self._container = container
        # A session knows nothing of artifacts; check_golden needs the one it was opened with.
        self._opened: weakref.WeakKeyDictionary[Session, BundleArtifact]
        self._opened = weakref.WeakKeyDictionary()
        pairs = [(entry.path, entry.sha256) for entry in manifest.files.values()]
        self.digest = directory_digest([*pairs, (MANIFEST, manifest.sha256)])

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Opens a bundle and checks every file's size and SHA-256.

        Raises:
            BadData: nothing readable is there, or it is no bundle.
            TrustError: the manifest breaks a rule; a file is missing, unlisted, changed, a link
                or a special file; a zip entry is doubled, disguised or a bomb.
        """
        path = Path(path)
        container = open_container(path)
        try:
            manifest = parse_manifest(container.manifest())
            container.check(manifest.files)
        except BaseException:
            container.close()
            raise
        return cls(path, container, manifest)

    @property
    def name(self) -> str:
        """The bundle's name."""
        return str(self.manifest["name"])

    @property
    def version(self) -> str:
        """The bundle's version."""
        return str(self.manifest["version"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty where the model does not classify."""
        return tuple(self.manifest.get("labels") or ())

    def artifact(
        self,
        id: str | None = None,
        *,
        target: str | None = None,
        scheme: str | None = None,
        device: str | None = None,
        io: str | None = None,
    ) -> BundleArtifact:
        """The one artifact that fits all that is given, and this processor.

        Some artifacts have a variant for processors without an instruction that they need. Of the
        two, the one is given that this processor runs rightly; where ``id`` or ``device`` is named,
        it is taken at its word.

        Args:
            id: its id.
            target: a target id.
            scheme: a scheme or its alias.
            device: a device id; artifacts made for no device in particular fit too.
            io: what it takes, out of `edgekit.names.IOS`: ``float32`` for the model's tensors,
                ``uint8`` for pixels. Without it, where all else is equal, the one that takes the
                model's tensors.

        Raises:
            UsageError: none fits, or more than one does; the message lists them.
            UnsupportedError: what fits needs an instruction that this processor lacks.
        """
        try:
            canonical = None if scheme is None else scheme_id(scheme)
        except ValueError as error:
            raise UsageError(str(error)) from error
        found = [
            artifact
            for artifact in self.artifacts
            if id in (None, artifact.id)
            and target in (None, artifact.target)
            and canonical in (None, artifact.scheme)
            and (device is None or not artifact.devices or device in artifact.devices)
            and io in (None, artifact.io)
        ]
        if id is None and io is None:
            found = _of_tensors(found)
        if id is None and device is None:
            found = _runnable(found)
        if len(found) == 1:
            return found[0]
        asked = {"id": id, "target": target, "scheme": scheme, "device": device, "io": io}
        what = ", ".join(f"{k} {v}" for k, v in asked.items() if v is not None) or "no condition"
        listed = ", ".join(a.id for a in (found or self.artifacts)) or "none"
        raise UsageError(
            f"{len(found)} artifacts of bundle {self.name!r} fit {what}; "
            f"{'those' if found else 'it has'}: {listed}",
            hint="give the id of one of them",
        )

    def session(self, artifact: BundleArtifact, *, threads: int = 1) -> Session:
        """Loads an artifact of this bundle in its runtime.

        From a zip, its files are first unpacked to a private temporary directory, which `close`
        removes; close the session before the bundle.

        Raises:
            TrustError, UnsupportedError, StorageError: as `place`.
            MissingDependency, BadData, UsageError: as `edgekit.runtime.session.open_session`.
        """
        path = self.place(artifact)
        session = open_session(artifact.target, path, artifact.signature, threads=threads)
        self._opened[session] = artifact
        return session

    def place(self, artifact: BundleArtifact) -> Path:
        """The artifact's main file on disk, for a runtime in another process.

        Raises:
            TrustError: a file changed since the bundle was opened.
            UnsupportedError: the installed runtime is older than the artifact requires, or the
                processor lacks an instruction that it requires.
            UsageError: the artifact is another bundle's.
            StorageError: a zip cannot be unpacked for want of space.
        """
        if artifact not in self.artifacts:
            raise UsageError(f"artifact {artifact.id!r} is not one of bundle {self.name!r}")
        _check_version(artifact)
        _check_isa(artifact)
        return self._container.place(artifact.files) / artifact.path

    def preprocess(self) -> Preprocess | None:
        """The preprocessing that the model was trained with, or None if it takes raw arrays.

        Raises:
            BadData: the manifest's entry is none that this edgekit knows.
        """
        data = self.manifest.get("preprocess")
        if data is None:
            return None
        if not isinstance(data, dict):
            raise BadData(f"bundle {self.name!r}: its preprocessing is not an object")
        return preprocess_from_json(data)

    def golden(self, io: str | None = None) -> tuple[dict[str, Array], dict[str, Array]]:
        """The golden vectors: feeds and the float model's outputs, by name, arrays [n, ...].

        Args:
            io: of artifacts with a picture border (`edgekit.names.BORDERS`), for their feeds.

        Raises:
            BadData: the bundle carries none, or they cannot be read.
        """
        entry = self.manifest.get("golden")
        if entry is not None and io in BORDERS:
            entry = entry.get(io)
        if entry is None:
            raise BadData(f"bundle {self.name!r} carries no golden vectors")
        return unpack_golden(self._container.read(self._files[entry["path"]]))

    def golden_pictures(self) -> dict[int, Array]:
        """The pictures that golden inputs were made of, by sample: uint8 ``[H, W, C]``, as decoded.

        Empty where the bundle carries none: then the manifest's ``golden`` says what the inputs
        were made of.

        Raises:
            BadData: they cannot be read.
        """
        entry = (self.manifest.get("golden") or {}).get("pictures")
        return {} if entry is None else unpack_pictures(self.read(entry["path"]))

    def golden_sounds(self) -> dict[int, Wav]:
        """The recordings that golden inputs were made of, by sample; otherwise as
        `golden_pictures`."""
        entry = (self.manifest.get("golden") or {}).get("sounds")
        return {} if entry is None else unpack_sounds(self.read(entry["path"]))

    def check_golden(self, session: Session) -> GoldenCheck:
        """Replays the golden vectors in a session that `session` opened, from their pictures or
        sounds on where the bundle carries some.

        Raises:
            UsageError: the session is not one of this bundle.
            BadData: as `golden`.
        """
        if session not in self._opened:
            raise UsageError(f"the session was not opened by bundle {self.name!r}")
        artifact = self._opened[session]
        feeds, outputs = self.golden(artifact.io)
        step = self.preprocess()
        scheme = artifact.scheme
        if isinstance(step, AudioPreprocess):
            sounds = self.golden_sounds()
            return check_golden(
                session, feeds, outputs, scheme=scheme, sounds=sounds, preprocess=step
            )
        image = step.for_io(artifact.io) if isinstance(step, ImagePreprocess) else None
        pictures = {} if image is None else self.golden_pictures()
        return check_golden(
            session, feeds, outputs, scheme=scheme, pictures=pictures, preprocess=image
        )

    def read(self, name: str) -> bytes:
        """One listed file's bytes, hashed again as they are read.

        Raises:
            BadData: the bundle lists no such file.
            TrustError: it changed since the bundle was opened.
        """
        if name not in self._files:
            raise BadData(f"bundle {self.name!r} has no file {name!r}")
        return self._container.read(self._files[name])

    def close(self) -> None:
        """Removes what was unpacked; sessions opened from a zip must be closed before."""
        self._container.close()


def _of_tensors(found: list[BundleArtifact]) -> list[BundleArtifact]:
    """Without artifacts with a picture border, where others differ from them in that alone."""
    taking = {_but_for_io(a) for a in found if a.io not in BORDERS}
    return [a for a in found if a.io not in BORDERS or _but_for_io(a) not in taking]


def _but_for_io(artifact: BundleArtifact) -> tuple[str | None, ...]:
    return artifact.target, artifact.delegate, artifact.scheme, artifact.variant


def _runnable(found: list[BundleArtifact]) -> list[BundleArtifact]:
    """Of artifacts that differ in their variant only, those for this processor.

    Raises:
        UnsupportedError: there are some, and this processor runs none of them.
    """
    able = [artifact for artifact in found if unmet(artifact.requires) is None]
    if found and not able:
        _check_isa(found[0])
    choices: dict[tuple[str | None, ...], list[BundleArtifact]] = {}
    for artifact in able:
        same = (artifact.target, artifact.delegate, artifact.scheme, artifact.io)
        choices.setdefault(same, []).append(artifact)
    wanted = NO_VNNI if lacks_vnni() else None
    kept = []
    for choice in choices.values():
        kept += [a for a in choice if a.variant == wanted] or choice
    return kept


def _check_isa(artifact: BundleArtifact) -> None:
    missing = unmet(artifact.requires)
    if missing is not None:
        wanted = missing.partition(":")[2].replace("|", " or ")
        raise UnsupportedError(
            f"artifact {artifact.id!r} needs a processor with {wanted}; on this one its int8 sums "
            "could saturate and its answers be wrong",
            hint="take the bundle's variant for such processors, or export one for a device that "
            "lacks it (--device host here)",
        )


def _check_version(artifact: BundleArtifact) -> None:
    """Refuses a runtime older than the manifest requires; an absent one is `open_session`'s."""
    runtime, least = artifact.requires.get("runtime"), artifact.requires.get("min_version")
    if not isinstance(runtime, str) or not isinstance(least, str):
        return
    try:
        installed = importlib.metadata.version(runtime)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return
    if _release(installed) < _release(least):
        raise UnsupportedError(
            f"artifact {artifact.id!r} needs {runtime} {least} or newer, {installed} is installed",
            hint=f"pip install '{runtime}>={least}'",
        )


def _release(version: str) -> tuple[int, ...]:
    """The release numbers of a version (PEP 440) without trailing zeros: (1, 30) of 1.30.0rc1."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
