"""Which artifacts to make for a set of devices: one job per (target, scheme, delegate, variant)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.device.profile import Device, TargetSupport
from edgekit.errors import UnsupportedError, UsageError
from edgekit.names import (
    DELEGATES,
    FLOAT_IO,
    IOS,
    NO_VNNI,
    OVERRIDES,
    TARGETS,
    TEST_TARGET,
    artifact_id,
    scheme_id,
    split_target,
    through_target,
    unknown,
)

__all__ = ["Job", "plan_targets"]


@dataclass(frozen=True)
class Job:
    """One artifact to make, and whom it serves.

    Attributes:
        target: target id.
        scheme: canonical scheme id.
        delegate: what executes it inside the runtime, e.g. ``xnnpack``.
        devices: ids of the devices it serves, in the order they were asked for.
        threads: CPU threads to measure with: the fewest that any of its devices asks for.
        variant: the plan's override that its devices need (`edgekit.names.OVERRIDES`), or None.
        io: what it takes: the model's own tensors, or a picture (`edgekit.names.IOS`).
    """

    target: str
    scheme: str
    delegate: str
    devices: tuple[str, ...]
    threads: int
    variant: str | None = None
    io: str = FLOAT_IO

    @property
    def id(self) -> str:
        """The artifact's id, see `edgekit.names.artifact_id`."""
        return artifact_id(self.target, self.scheme, self.variant, self.io, self.delegate)

    @property
    def through(self) -> str:
        """Its target, with the delegate where that is not the usual one."""
        return through_target(self.target, self.delegate)


_Key = tuple[str, str, str, str | None]
"""Target, scheme, delegate and variant of a job."""

_DELEGATES_RUN = {
    "vulkan": "its profile lists no GPU that ExecuTorch's Vulkan delegate is known to run on.",
    "coreml": "Core ML is part of Apple's systems, and its profile lists none that runs it.",
}


def plan_targets(
    devices: Sequence[Device],
    targets: Sequence[str] = (),
    schemes: Sequence[str] = (),
    ios: Sequence[str] = (),
) -> tuple[Job, ...]:
    """Decides what to make; devices that need the same artifact share one job.

    Args:
        devices: at least one profile.
        targets: target ids the user named, with ``:DELEGATE`` for other than the usual one; empty
            means all that each device runs.
        schemes: scheme ids or aliases the user named; empty means the first, preferred, scheme of
            each target on each device.
        ios: what the artifacts take (`edgekit.names.IOS`); empty means the model's own tensors.

    Returns:
        Jobs in the order of `edgekit.names.TARGETS`, then in the order of ``schemes`` and ``ios``.

    Raises:
        UsageError: no device, or an id that is no target, scheme or io.
        UnsupportedError: a named target or scheme runs on none of the devices, or a device runs
            none of what was named; the message says what it can run.
    """
    if not devices:
        raise UsageError("no device to make artifacts for", hint="Name one with --device.")
    wanted = _known_targets(targets)
    wanted_schemes = _known_schemes(schemes)
    for io in ios:
        if io not in IOS:
            raise UsageError(unknown("io", io, IOS))
    jobs: dict[_Key, list[Device]] = {}
    for device in _unique(devices):
        chosen = _choose(device, wanted, wanted_schemes)
        if not chosen:
            raise _nothing(device, wanted, wanted_schemes)
        for key in chosen:
            jobs.setdefault(key, []).append(device)
    _refuse_idle(devices, jobs, wanted, wanted_schemes)
    order = [*TARGETS, TEST_TARGET]
    ranks = {scheme: rank for rank, scheme in enumerate(wanted_schemes)}
    keys = sorted(jobs, key=lambda k: (order.index(k[0]), _rank(k), ranks.get(k[1], 0), k[3] or ""))
    made = tuple(
        Job(
            *key[:3],
            devices=tuple(d.id for d in jobs[key]),
            threads=min(d.threads for d in jobs[key]),
            variant=key[3],
            io=io,
        )
        for key in keys
        for io in dict.fromkeys(ios or (FLOAT_IO,))
    )
    _refuse_same(made)
    return made


def _refuse_same(jobs: Sequence[Job]) -> None:
    """Two artifacts of one id would be written to one place."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.id, job)
        if other is not job:
            raise UsageError(
                f"{job.id} would be made twice: for delegate {other.delegate!r} of "
                f"{', '.join(other.devices)} and for {job.delegate!r} of {', '.join(job.devices)}",
                hint="have the profiles name one delegate of this target",
            )


def _known_targets(targets: Sequence[str]) -> tuple[str, ...]:
    for name in targets:
        target, _, delegate = name.partition(":")
        if target not in (*TARGETS, TEST_TARGET):
            raise UsageError(unknown("target", target, TARGETS))
        known = DELEGATES.get(target, ())
        if ":" in name and delegate not in known:
            if not known:
                raise UsageError(
                    f"target {target!r} has one delegate alone; {name!r} names another",
                    hint=f"Give --target {target}; delegates can be chosen for "
                    + ", ".join(DELEGATES),
                )
            raise UsageError(unknown(f"delegate of {target}", delegate, known))
    return tuple(dict.fromkeys(through_target(*split_target(name)) for name in targets))


def _rank(key: _Key) -> int:
    """The place of a key's delegate among those of its target."""
    known = DELEGATES.get(key[0], ())
    return known.index(key[2]) if key[2] in known else 0


def _through(entry: TargetSupport) -> str:
    return through_target(entry.target, entry.delegate)


def _known_schemes(schemes: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(scheme_id(scheme) for scheme in schemes))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _unique(devices: Sequence[Device]) -> list[Device]:
    """Drops repetitions, and refuses two different profiles that share one id."""
    seen: dict[str, Device] = {}
    for device in devices:
        if seen.setdefault(device.id, device) != device:
            raise UsageError(
                f"two different device profiles have the id {device.id!r}",
                hint="Give one of the files another id.",
            )
    return list(seen.values())


def _choose(device: Device, targets: Sequence[str], schemes: Sequence[str]) -> list[_Key]:
    return [
        (entry.target, scheme, entry.delegate, _variant(device, entry.target, scheme))
        for entry in device.targets
        if (_through(entry) in targets if targets else not entry.when_named)
        for scheme in (schemes or entry.schemes[:1])
        if scheme in entry.schemes
    ]


def _variant(device: Device, target: str, scheme: str) -> str | None:
    """The override that a device needs for its instruction set."""
    needed = device.isa.lacks_vnni and target in OVERRIDES[NO_VNNI] and scheme == "w8a8"
    return NO_VNNI if needed else None


def _refuse_idle(
    devices: Sequence[Device],
    jobs: dict[_Key, list[Device]],
    targets: Sequence[str],
    schemes: Sequence[str],
) -> None:
    """Nothing that the user named may be passed over in silence."""
    can = "; ".join(_can(device) for device in devices)
    reached = [key[1] for key in jobs]
    for target in targets:
        if all(through_target(key[0], key[2]) != target for key in jobs):
            with_scheme = f" as {', '.join(schemes)}" if schemes else ""
            why = " ".join(filter(None, (_reason(device, target) for device in devices)))
            raise UnsupportedError(
                f"none of the devices runs target {target!r}{with_scheme}. {why}".rstrip(),
                hint=can,
            )
    for scheme in schemes:
        if scheme not in reached:
            raise UnsupportedError(
                f"none of the chosen targets carries scheme {scheme!r} on these devices", hint=can
            )


def _nothing(device: Device, targets: Sequence[str], schemes: Sequence[str]) -> UnsupportedError:
    what = [f"target {', '.join(targets)}"] if targets else []
    what += [f"scheme {', '.join(schemes)}"] if schemes else []
    why = " ".join(filter(None, (_reason(device, target) for target in targets)))
    message = f"device {device.id!r} cannot run {' with '.join(what) or 'any target there is'}. "
    return UnsupportedError((message + why).rstrip(), hint=_can(device))


def _reason(device: Device, target: str) -> str:
    if any(_through(entry) == target for entry in device.targets):
        return ""  # it runs it: what was asked of it is another scheme
    target, delegate = split_target(target)
    reasons = [u.reason for u in device.unsupported if u.target == target]
    if delegate is not None and not reasons:
        reasons = [_DELEGATES_RUN[delegate]]
    return f"{device.id}: {reasons[0]}" if reasons else ""


def _can(device: Device) -> str:
    runs = [f"{_through(entry)} ({', '.join(entry.schemes)})" for entry in device.targets]
    return f"{device.id} runs {', '.join(runs) or 'no target there is'}"
