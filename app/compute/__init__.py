"""What the service may ask of a cluster: protocols and the types they use, with no Kubernetes in them.

`gateway.Gateway` is the whole of it, with one part each for snapshots, preloads, VM pools and console logs. `bootstrap` alone
chooses the implementation; today there is one, `compute.kubevirt`.

A second runtime implements:

- `Gateway`: expand a written template into a `VmSpec` (JSON of its own choice, which the service stores and gives back), say what
  such a spec needs and makes; create, label, list, watch and delete VMs. Names are chosen by the caller, so that a create which
  is repeated after a crash finds what the first one made. A delete names the UID.
- `SnapshotGateway`, `PreloadGateway`, `VmPoolGateway` and `ConsoleGateway`, each in the way its protocol says. What the runtime
  cannot do it says in `Gateway.unavailable`, and the calls of that part raise `ClusterError`.
- Errors: every method raises only those of `app.errors` that `gateway` names. `tests/integration/compute` holds the behaviour
  that callers rely on.
"""
