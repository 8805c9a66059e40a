"""How long simulated work takes, in seconds."""

import random
from dataclasses import dataclass, fields, replace
from typing import Self

DEFAULT_COLD_BOOT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Durations:
    """All delays that the controllers simulate. The first six are the stages of a cold boot; they sum to 30 s.

    The delays of node loss, crash loops and webhooks were observed on Kubernetes 1.36 with KubeVirt v1.9.0. Those of
    storage were not measured; they are chosen in proportion to each other: an import fetches and converts 10 GiB at about
    256 MiB/s, a host-assisted copy moves them at 400 MiB/s, and a driver's clone, snapshot or restore copies no data.
    `guest_boot_prepared` is the boot of a guest whose disk was booted before, or is a copy of such a disk: its first boot
    (keys, file system growth, cloud-init) is over. Memory is kept and restored in proportion to what QEMU 10 took for guests that boot
    in 3.9 s: it stood still for 0.10 s, was restored in 0.16 s, and had an identity of its own 0.25 s later.
    """

    schedule: float = 0.5
    image_pull: float = 11.0
    launch: float = 2.0
    domain_start: float = 1.5
    guest_boot: float = 14.0
    probe: float = 1.0
    graceful_stop: float = 2.0
    reaction: float = 0.015
    collection: float = 0.01
    image_retry: float = 10.0
    node_grace: float = 47.0
    node_eviction: float = 300.0
    node_return: float = 30.0
    crash_backoff: float = 1.0
    crash_backoff_limit: float = 300.0
    webhook_timeout: float = 10.0
    aggregation_notice: float = 30.0
    pool_reaction: float = 1.0
    volume_bind: float = 0.5
    import_total: float = 40.0
    import_retry: float = 10.0
    cron_poll: float = 2.0
    clone_total: float = 6.0
    copy_total: float = 25.0
    snapshot_total: float = 3.0
    snapshot_restore: float = 2.0
    snapshot_deadline: float = 300.0
    guest_boot_prepared: float = 5.0
    memory_save: float = 0.4
    memory_restore: float = 0.6
    memory_identity: float = 1.0

    @classmethod
    def for_cold_boot(cls, seconds: float, *, time_scale: float = 1.0) -> Self:
        """The defaults, scaled so that a cold boot takes `seconds * time_scale`."""
        return cls().scaled(seconds / DEFAULT_COLD_BOOT_SECONDS * time_scale)

    @classmethod
    def for_real_guests(cls) -> Self:
        """What is not simulated takes no time of its own; the delays of Kubernetes and KubeVirt stay."""
        nothing = ("image_pull", "domain_start", "guest_boot", "guest_boot_prepared", "probe", "graceful_stop")
        return replace(cls(), schedule=0.01, launch=0.01, volume_bind=0.01, **dict.fromkeys(nothing, 0.0))

    def scaled(self, factor: float) -> Self:
        return replace(self, **{field.name: getattr(self, field.name) * factor for field in fields(self)})

    def backoff(self, failures: int) -> float:
        """Seconds to the next start after this many failed starts in a row: 13 and 46 were observed, then up to 300."""
        unscaled = 10 * failures**2 + 3 * failures
        return min(unscaled * self.crash_backoff, self.crash_backoff_limit)

    @property
    def cold_boot(self) -> float:
        """Seconds from the creation of a VM to a ready one, with no image cached."""
        return self.schedule + self.image_pull + self.launch + self.domain_start + self.guest_boot + self.probe


class Jitter:
    """Varies durations by up to `share` either way; the same seed gives the same sequence."""

    def __init__(self, seed: int, share: float = 0.1) -> None:
        self._random = random.Random(seed)  # noqa: S311  # simulated delays, no secret
        self._share = share

    def spread(self, seconds: float) -> float:
        return seconds * self._random.uniform(1 - self._share, 1 + self._share)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def token(self, length: int = 5) -> str:
        """A random suffix in the alphabet of generated Kubernetes names (no vowels, no look-alikes)."""
        return "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=length))
