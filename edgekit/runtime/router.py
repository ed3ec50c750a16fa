"""Router: answers on the device where it can and is sure, in the cloud where not, always in time.

```python
with Bundle.open("mobilenet.zip") as bundle, Cloud(url, "teacher", api_key=key) as cloud:
    with Router(bundle, cloud) as router:
        answer = router.answer({"image": picture}, deadline_ms=300)
```

Both sides run in threads of the router's own, so a call returns by its deadline even where one of
them hangs. The device is asked first, unless it is missing, failing, too slow, too hot or short of
memory. Where its answer is not sure enough, the policy says what to do. Where one side is later
than 19 of 20 times, the other is asked as well, and the first good answer is taken.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Final

from edgekit.errors import Abstained, BadData, UsageError
from edgekit.runtime._closing import Closing
from edgekit.runtime._routing import Routing, Setup
from edgekit.runtime._sides import Arrays, CloudSide, DeviceSide
from edgekit.runtime.answers import Answer, Event
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.cloud import Cloud
from edgekit.runtime.conditions import Conditions, Limits, local_conditions, sampled
from edgekit.runtime.manifest import BundleArtifact
from edgekit.runtime.policy import Policy
from edgekit.runtime.session import Session
from edgekit.signature import Signature, TensorSpec

__all__ = ["Router", "policy_of"]

_DEADLINE_MS: Final = 1000.0
_SAMPLE_S: Final = 2.0


class Router(Closing):
    """Routes requests between a session on the device and a model in the cloud.

    Safe to use from several threads; close it, or use it in a ``with``.

    Args:
        device: a bundle, a session (which is the router's from now on), or None where there is no
            model on the device.
        cloud: the client, which stays its owner's to close; None: the device alone.
        policy: when the device is sure enough; None: the bundle's, or else every answer is.
        artifact: of a bundle the artifact or its id; None: the one its policy was chosen for, or
            the only one.
        signature: of the model, where there is none on the device to tell.
        threads: CPU threads of the session.
        limits: when the device is to be spared.
        conditions: tells memory, heat and network; by default what Linux tells, which knows nothing
            of the network. Asked every two seconds at most, in the caller's thread.
        online: says whether the network may be used; asked before the cloud is.
        observer: told of every request, once, in the caller's thread; what it raises is dropped.
        deadline_ms: how long an answer may take where neither caller nor policy says.
        hedge: whether the other side is asked where one is late.
        cloud_threads: requests to the cloud that may be under way at a time.

    Raises:
        UsageError: neither side is given, or the artifact or the signature is not clear.
        BadData: the policy does not fit the model.
    """

    def __init__(
        self,
        device: Bundle | Session | None,
        cloud: Cloud | None = None,
        policy: Policy | None = None,
        *,
        artifact: BundleArtifact | str | None = None,
        signature: Signature | None = None,
        threads: int = 1,
        limits: Limits | None = None,
        conditions: Callable[[], Conditions] | None = local_conditions,
        online: Callable[[], bool] | None = None,
        observer: Callable[[Event], None] | None = None,
        deadline_ms: float = _DEADLINE_MS,
        hedge: bool = True,
        cloud_threads: int = 4,
    ) -> None:
        if device is None and cloud is None:
            raise UsageError("a router needs a model on the device, a cloud, or both")
        bundle = device if isinstance(device, Bundle) else None
        if policy is None:
            policy = Policy() if bundle is None else policy_of(bundle)
        open, own, version = _opener(device, policy, artifact, threads)
        self.signature = _signature(own, signature)
        self.policy = policy
        read = None if conditions is None else sampled(conditions, _SAMPLE_S, time.monotonic)
        self._setup = Setup(
            device=DeviceSide(open, self.signature),
            cloud=CloudSide(cloud, self.signature, cloud_threads, _network(online, read)),
            policy=policy,
            scored=_scored(policy, self.signature),
            limits=limits or Limits(),
            conditions=read,
            hedge=hedge,
            version=version,
        )
        self._has_cloud = cloud is not None
        self._observer = observer
        self._deadline_ms = policy.timeout_ms or deadline_ms

    def answer(
        self,
        inputs: Arrays,
        *,
        deadline_ms: float | None = None,
        cloud_inputs: Arrays | Callable[[], Arrays] | None = None,
    ) -> Answer:
        """Answers one request, by its deadline.

        Args:
            inputs: one array per input, as the signature has them.
            deadline_ms: how long it may take, in milliseconds.
            cloud_inputs: what the cloud's model takes, where that is something else (another
                tokenizer, say); or a function that makes it, called only where it is needed, in
                another thread.

        Raises:
            Abstained: there is no answer by the deadline, or the policy wants none rather than one
                that is not sure; then ``best`` is that one.
            BadData: the inputs do not fit the signature.
            UsageError: ``cloud_inputs`` are needed, by the policy; or the deadline is no number.
        """
        allowed = self._deadline_ms if deadline_ms is None else deadline_ms
        if not math.isfinite(allowed):
            raise UsageError(f"deadline_ms is {allowed}; milliseconds are wanted")
        if cloud_inputs is None and self._has_cloud and not self.policy.same_inputs:
            raise UsageError(
                "by its policy the cloud's model takes other inputs than the device's",
                hint="answer(inputs, cloud_inputs=...)",
            )
        routing = Routing(
            self._setup, inputs, inputs if cloud_inputs is None else cloud_inputs, allowed
        )
        why = "bad-input"
        try:
            self.signature.check_inputs(inputs, what="the router")
            why = "failed"
            answer = routing.settle()
        except Exception as error:
            self._tell(routing, None, error.why if isinstance(error, Abstained) else why)
            raise
        self._tell(routing, answer, answer.why)
        return answer

    def _tell(self, routing: Routing, answer: Answer | None, why: str) -> None:
        if self._observer is not None:
            # An answer must not be lost for what only watches.
            with contextlib.suppress(Exception):
                self._observer(routing.event(answer, why))

    def close(self, timeout_s: float = 1.0) -> None:
        """Closes the session and lets the threads go; one that hangs is left behind, as a daemon.

        Args:
            timeout_s: how long to wait for what is under way, in seconds.
        """
        self._setup.device.close(timeout_s)
        self._setup.cloud.close(timeout_s)


def policy_of(bundle: Bundle) -> Policy:
    """A bundle's policy; where none was tuned, the one that takes every answer of the device.

    Raises:
        BadData: it is none that this edgekit knows.
    """
    document = bundle.manifest.get("policy")
    return Policy() if document is None else Policy.from_json(document)


def _opener(
    device: Bundle | Session | None,
    policy: Policy,
    artifact: BundleArtifact | str | None,
    threads: int,
) -> tuple[Callable[[], Session] | None, Signature | None, str | None]:
    """What opens the session, its signature, and the bundle's version."""
    if device is None:
        return None, None, None
    if not isinstance(device, Bundle):
        session = device
        return (lambda: session), session.signature, None
    bundle = device
    if artifact is None and policy.chosen is not None:
        artifact = str(policy.chosen["artifact"]) if "artifact" in policy.chosen else None
    found = artifact if isinstance(artifact, BundleArtifact) else bundle.artifact(artifact)
    return (lambda: bundle.session(found, threads=threads)), found.signature, bundle.version


def _signature(own: Signature | None, given: Signature | None) -> Signature:
    signature = own or given
    if signature is None:
        raise UsageError(
            "without a model on the device nothing tells the inputs and outputs",
            hint="Router(None, cloud, signature=...), for example cloud.metadata()",
        )
    return signature


def _scored(policy: Policy, signature: Signature) -> TensorSpec | None:
    """The output that tells how sure an answer is; None where nothing depends on it."""
    try:
        return policy.scored(signature)
    except BadData:
        if policy.min_confidence is not None:
            raise
        return None


def _network(
    online: Callable[[], bool] | None, read: Callable[[], Conditions] | None
) -> Callable[[], bool | None]:
    def ask() -> bool | None:
        if online is not None:
            with contextlib.suppress(Exception):  # a hook that fails tells nothing
                return online()
        return None if read is None else read().online

    return ask
