"""QEMU machines as an asyncio library. It knows nothing of Kubernetes, images or storage.

    found = await probe_machines()
    async with open_machines(folder, found) as machines:
        machine = await machines.start(plan, listener)

`machines` starts them and counts what they take; `machine` is one of them; `supervisor` is the process that owns all QEMU
processes and ends with ours; `monitor` and `agent` speak QMP and the guest agent's protocol; `memory_*` keep and restore memory.
"""
