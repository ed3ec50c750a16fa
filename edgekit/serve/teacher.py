"""A bundle that names its teacher: the larger model that a server answers from beside it.

The teacher stays a bundle of its own. The student's manifest names it by its digest, so that
devices get the small one alone, and a server knows that it serves the right pair.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import storage_error
from edgekit.errors import BadData, TrustError, UsageError
from edgekit.pack import aside, rewrite
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.manifest import check_name
from edgekit.serve.choice import FLOAT_FIRST, choose

__all__ = ["Listed", "Teacher", "join", "listed", "teacher_of"]


@dataclass(frozen=True)
class Teacher:
    """A teacher that lies where its student says.

    Attributes:
        path: its bundle.
        name: of the model.
        artifact: id of what is served: float before int8.
        digest: of the bundle.
    """

    path: Path
    name: str
    artifact: str
    digest: str


@dataclass(frozen=True)
class Listed:
    """A bundle that is to be served.

    Attributes:
        path: of it.
        name: under which it is served, or None for its own.
        artifact: id of what is served of it, or None to choose.
        student: the bundle of the pair that it belongs to, by which the pair is checked whenever
            one of them is read anew; None where its teacher is left alone.
    """

    path: Path
    name: str | None = None
    artifact: str | None = None
    student: Path | None = None


def listed(bundles: Iterable[Listed]) -> list[Listed]:
    """The bundles, each followed by its teacher where it names one.

    Raises:
        EdgekitError: see `teacher_of`.
    """
    found: list[Listed] = []
    for bundle in bundles:
        found.append(Listed(bundle.path, bundle.name, bundle.artifact, bundle.path))
        teacher = teacher_of(bundle.path)
        if teacher is not None:
            found.append(Listed(teacher.path, teacher.name, teacher.artifact, bundle.path))
    return found


def teacher_of(student: Path) -> Teacher | None:
    """The teacher that a bundle names, if it names one.

    Raises:
        BadData: it is not there.
        TrustError: what is there is another bundle, or one of the two is not what its manifest
            says.
        UnsupportedError: none of its artifacts is for a server.
    """
    with Bundle.open(student) as bundle:
        named = bundle.manifest.get("teacher")
    if named is None:
        return None
    try:
        file, digest = check_name(str(named["file"])), str(named["digest"])
    except (KeyError, TypeError) as error:
        raise TrustError(f"bundle {student}: its teacher has no file and digest") from error
    path = student.absolute().parent / file
    if "/" in file or not path.exists():
        raise BadData(
            f"bundle {student} names its teacher as {file}, which does not lie beside it",
            hint="put it there, or serve the bundle with --no-teacher",
        )
    with Bundle.open(path) as teacher:
        if teacher.digest != digest:
            raise TrustError(
                f"{path} is not the teacher that {student} names: its digest is {teacher.digest}, "
                f"not {digest}",
                hint="make the pair again: edgekit serve pair STUDENT TEACHER -o OUT",
            )
        return Teacher(path, teacher.name, choose(teacher, schemes=FLOAT_FIRST).id, digest)


def join(student: Path, teacher: Path, out: Path) -> tuple[Path, Path]:
    """Writes a student's bundle anew, naming its teacher, and the teacher beside it.

    Args:
        student, teacher: bundles; both stay as they are.
        out: where the new student goes; the teacher goes to ``OUT-teacher`` (``.zip``).

    Returns:
        Where both are.

    Raises:
        UsageError: they do not answer the same question: their labels or the shapes of their
            outputs differ, or both have one name.
        UnsupportedError: none of the teacher's artifacts is for a server.
        BadData, TrustError: one is no bundle, or not what its manifest says.
        StorageError: no space or no permission.
    """
    out = out.absolute()
    with Bundle.open(student) as small, Bundle.open(teacher) as large:
        _check_pair(small, large)
        choose(large, schemes=FLOAT_FIRST)
        suffix = ".zip" if teacher.is_file() else ""
        beside = out.with_name(f"{out.stem if out.suffix == '.zip' else out.name}-teacher{suffix}")
        if beside.exists():
            raise UsageError(f"{beside} is there already", hint="choose another place")
        named = {
            "name": large.name,
            "version": large.version,
            "digest": large.digest,
            "file": check_name(beside.name),
        }
        rewrite(small, {"teacher": named}, out)
    _copy(teacher, beside)
    return out, beside


def _check_pair(small: Bundle, large: Bundle) -> None:
    if small.name == large.name:
        raise UsageError(f"both bundles are named {small.name!r}; a server tells them by name")
    if small.labels != large.labels:
        raise UsageError(f"{small.name!r} and {large.name!r} have different labels")
    ours, theirs = ([o.shape for o in b.signature.outputs] for b in (small, large))
    if ours != theirs:
        raise UsageError(
            f"the outputs of {small.name!r} have the shapes {ours}, those of {large.name!r} "
            f"{theirs}"
        )


def _copy(source: Path, to: Path) -> None:
    try:
        with aside(to.parent) as folder:
            copy = folder / to.name
            if source.is_dir():
                shutil.copytree(source, copy, symlinks=True)
            else:
                shutil.copyfile(source, copy)
            copy.rename(to)
    except OSError as error:
        raise storage_error(to.parent, error) from error
