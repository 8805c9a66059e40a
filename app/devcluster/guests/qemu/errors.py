"""What goes wrong with a machine. Each message is a sentence for the one who asked: what, where, what to do.

MachineError
  MachinesUnavailable   no QEMU here that works
  NoRoom                this host has no memory, or no place, for one more guest
  BadPlan               the plan cannot be a machine
  StartFailed           QEMU ended or did not answer while the machine was started
  MachineGone           the machine has ended
  MonitorFailed         QEMU refused a command
  AgentSilent           the guest agent does not answer
  GuestRefused          the guest answered, with an error
  MemoryBroken          a kept memory is not whole, or not one
  MemoryMismatch        a kept memory does not fit this QEMU, host or plan
"""


class MachineError(Exception):
    pass


class MachinesUnavailable(MachineError):
    pass


class NoRoom(MachineError):
    pass


class BadPlan(MachineError):
    pass


class StartFailed(MachineError):
    pass


class MachineGone(MachineError):
    pass


class MonitorFailed(MachineError):
    pass


class AgentSilent(MachineError):
    pass


class GuestRefused(MachineError):
    pass


class MemoryBroken(MachineError):
    pass


class MemoryMismatch(MachineError):
    pass
