"""Writes a `placement` into an expanded spec, merges it with KubeVirt's own fields for the same, and finds contradictions. Pure.

KubeVirt v1.9.0: pinned CPUs are whole, and their request equals their limit, as do those of memory if both are given; its renderer
gives the pod the same amounts. Most contradictions found here its validator refuses too, later and in other words. It does not
refuse memory that is not a multiple of the huge page, nor CPUs that a kubelet with `full-pcpus-only` rejects.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from app.compute.kubevirt import labels
from app.compute.kubevirt.kinds import Manifest
from app.compute.kubevirt.quantities import parse_quantity
from app.compute.kubevirt.templates.problems import Problems
from app.domain.placement import Aspect, Contradiction, Placement, Spread, Terms, contradictions

ROOT = "placement"
VMI = "spec.template.spec"
EVEN_PARITY = "alpha.kubevirt.io/EmulatorThreadCompleteToEvenParity"
"""An annotation of a VM: its emulator gets a second CPU if that makes the number of CPUs even."""

Locate = Callable[[str], str]
"""Turns a field of a VirtualMachine into the place where its author wrote it."""

_DOMAIN = f"{VMI}.domain"
_FIELDS = {
    Aspect.DEDICATED: f"{_DOMAIN}.cpu.dedicatedCpuPlacement",
    Aspect.ISOLATED: f"{_DOMAIN}.cpu.isolateEmulatorThread",
    Aspect.NUMA: f"{_DOMAIN}.cpu.numa.guestMappingPassthrough",
    Aspect.REALTIME: f"{_DOMAIN}.cpu.realtime",
    Aspect.HUGEPAGES: f"{_DOMAIN}.memory.hugepages.pageSize",
    Aspect.THREADS: f"{_DOMAIN}.cpu.threads",
    Aspect.CPU_REQUEST: f"{_DOMAIN}.resources.requests.cpu",
    Aspect.CPU_LIMIT: f"{_DOMAIN}.resources.limits.cpu",
    Aspect.GUEST_MEMORY: f"{_DOMAIN}.memory.guest",
    Aspect.MEMORY_REQUEST: f"{_DOMAIN}.resources.requests.memory",
    Aspect.MEMORY_LIMIT: f"{_DOMAIN}.resources.limits.memory",
}
_TOPOLOGIES = {Spread.NODES: "kubernetes.io/hostname", Spread.ZONES: "topology.kubernetes.io/zone"}
_FRAGMENT = ("nodeSelector", "affinity", "tolerations", "topologySpreadConstraints")


def place(spec: Manifest, placement: Placement | None, locate: Locate, problems: Problems, *, full_cores: bool) -> None:
    """Writes `placement` into an expanded VirtualMachine's spec, and adds contradictions to `problems`.

    `full_cores`: the CPU managers of the nodes assign whole cores. A VM with an isolated emulator then asks for an even number of CPUs.
    """
    placement = placement or Placement()
    vmi = spec["template"]["spec"]
    _write_domain(vmi["domain"], placement, locate, problems)
    _write_nodes(vmi, placement, locate, problems)
    _spread(vmi, placement, locate, problems)
    if problems.found:
        return
    cpu = vmi["domain"].get("cpu") or {}
    if cpu.get("dedicatedCpuPlacement"):
        _even_out(vmi["domain"])
        if full_cores and cpu.get("isolateEmulatorThread"):
            metadata = spec["template"].setdefault("metadata", {})
            metadata["annotations"] = {EVEN_PARITY: "", **(metadata.get("annotations") or {})}
    for found in contradictions(terms_of(spec), full_cores_only=full_cores):
        problems.add(_field(found, placement, locate), found.message)


def is_default_spread(constraint: Manifest) -> bool:
    """Whether a spreading rule is one that `place` writes. It only prefers nodes, and the VM of any pool may have another."""
    return constraint.get("topologyKey") in _TOPOLOGIES.values() and constraint == _soft_spread(
        str(constraint["topologyKey"])
    )


def fragment_of(spec: Manifest) -> Manifest:
    """The part of an expanded spec that says where its VM may run and on what terms."""
    vmi = spec["template"]["spec"]
    domain = {key: vmi["domain"][key] for key in ("cpu", "memory", "resources") if vmi["domain"].get(key)}
    return {"domain": domain, **{key: vmi[key] for key in _FRAGMENT if vmi.get(key)}}


def terms_of(spec: Manifest) -> Terms:
    """What an expanded spec asks for, from the placement or from the template. Its quantities are valid: `rules` checked them."""
    domain = spec["template"]["spec"]["domain"]
    cpu, memory, resources = domain.get("cpu") or {}, domain.get("memory") or {}, domain.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    elsewhere = spec.get("instancetype") is not None
    vcpus = None if elsewhere else count_cpus(cpu, resources)
    annotations = (spec["template"].get("metadata") or {}).get("annotations") or {}
    return Terms(
        vcpus=vcpus,
        threads=cpu.get("threads"),
        pod_cpus=None if vcpus is None else count_pod_cpus(domain, vcpus, even=EVEN_PARITY in annotations),
        dedicated=bool(cpu.get("dedicatedCpuPlacement")),
        isolated=bool(cpu.get("isolateEmulatorThread")),
        numa=(cpu.get("numa") or {}).get("guestMappingPassthrough") is not None,
        realtime=cpu.get("realtime") is not None,
        page=_amount((memory.get("hugepages") or {}).get("pageSize")),
        guest_memory=_amount(memory.get("guest")),
        memory_request=_amount(requests.get("memory")),
        memory_limit=_amount(limits.get("memory")),
        cpu_request=_amount(requests.get("cpu")),
        cpu_limit=_amount(limits.get("cpu")),
    )


def count_cpus(cpu: Manifest, resources: Manifest) -> int:
    """The vCPUs of a VM: the product of what its topology gives, otherwise the CPUs of its resources; at least 1."""
    counted = 0
    for name in ("cores", "sockets", "threads"):
        if cpu.get(name):
            counted = (counted or 1) * int(cpu[name])
    if counted:
        return counted
    for given in (resources.get("limits") or {}, resources.get("requests") or {}):
        amount = _amount(given.get("cpu"))
        if amount is not None:
            return max(1, -(-amount.numerator // amount.denominator))
    return 1


def count_pod_cpus(domain: Manifest, vcpus: int, *, even: bool) -> int:
    """The CPUs that the pod of a pinned VM gets (KubeVirt v1.9.0). `even`: the VM has EVEN_PARITY."""
    io_threads = int((domain.get("ioThreads") or {}).get("supplementalPoolThreadCount") or 0)
    cpus = vcpus + io_threads
    if (domain.get("cpu") or {}).get("isolateEmulatorThread"):
        extra = io_threads if domain.get("ioThreadsPolicy") == "supplementalPool" else 0
        cpus += 2 if even and (cpus + extra) % 2 == 0 else 1
    return cpus


def _write_domain(domain: Manifest, placement: Placement, locate: Locate, problems: Problems) -> None:
    has_realtime = isinstance((domain.get("cpu") or {}).get("realtime"), dict)
    wanted: tuple[tuple[str, bool, str, str, Any], ...] = (
        ("dedicated_cpus", placement.dedicated_cpus, "cpu", "dedicatedCpuPlacement", True),
        ("isolate_emulator_thread", placement.isolate_emulator_thread, "cpu", "isolateEmulatorThread", True),
        ("numa_passthrough", placement.numa_passthrough, "cpu", "numa", {"guestMappingPassthrough": {}}),
        ("realtime", placement.realtime and not has_realtime, "cpu", "realtime", {}),
        ("cpu_model", placement.cpu_model is not None, "cpu", "model", placement.cpu_model),
        ("hugepages", placement.hugepages is not None, "memory", "hugepages", {"pageSize": str(placement.hugepages)}),
    )
    for field, asked, part, key, value in wanted:
        if not asked:
            continue
        section = domain[part] = domain.get(part) or {}
        if section.get(key) not in (None, value):
            at = locate(f"{_DOMAIN}.{part}.{key}")
            problems.add(f"{ROOT}.{field}", f"differs from {at} of the template: write it in only one of the two")
        else:
            section[key] = value


def _write_nodes(vmi: Manifest, placement: Placement, locate: Locate, problems: Problems) -> None:
    if placement.node_selector:
        own = problems.mapping(vmi, "nodeSelector", locate(VMI))
        for key, value in placement.node_selector.items():
            if own.get(key, value) != value:
                problems.add(
                    f"{ROOT}.node_selector.{key}",
                    f"is {value!r} here and {own[key]!r} in the template: write it in only one of the two",
                )
        vmi["nodeSelector"] = {**own, **placement.node_selector}
    if placement.affinity is not None:
        if vmi.get("affinity") not in (None, {}, placement.affinity):
            problems.add(
                f"{ROOT}.affinity", "differs from the affinity of the template: write it in only one of the two"
            )
        vmi["affinity"] = placement.affinity
    if placement.tolerations:
        own_tolerations = vmi.get("tolerations")
        listed = own_tolerations if isinstance(own_tolerations, list) else []
        vmi["tolerations"] = [*listed, *(item for item in placement.tolerations if item not in listed)]
    _check_shapes(vmi, placement, locate, problems)


def _check_shapes(vmi: Manifest, placement: Placement, locate: Locate, problems: Problems) -> None:
    """Checks only the types that we read ourselves; the cluster's dry run checks the rest."""
    for key, ours in (("tolerations", bool(placement.tolerations)), ("topologySpreadConstraints", False)):
        value = vmi.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            at = f"{ROOT}.{key}" if ours else locate(f"{VMI}.{key}")
            problems.add(at, "must be a list of mappings, as in a pod's spec")
    for key in ("nodeSelector", "affinity"):
        if vmi.get(key) is not None and not isinstance(vmi[key], dict):
            problems.add(locate(f"{VMI}.{key}"), "must be a mapping, as in a pod's spec")
    if not problems.found:
        at = f"{ROOT}.affinity" if placement.affinity is not None else locate(f"{VMI}.affinity")
        _check_affinity(vmi, at, problems)


def _check_affinity(vmi: Manifest, at: str, problems: Problems) -> None:
    affinity = vmi.get("affinity") or {}
    for key in ("podAffinity", "podAntiAffinity"):
        problems.mapping(affinity, key, at)
    rule_at = "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    required = problems.mapping(affinity, rule_at, at)
    for term, path in problems.mappings(required, "nodeSelectorTerms", f"{at}.{rule_at}"):
        for key in ("matchExpressions", "matchFields"):
            for rule, rule_path in problems.mappings(term, key, path):
                if not isinstance(rule.get("key"), str) or not isinstance(rule.get("operator"), str):
                    problems.add(rule_path, "needs a key and an operator")
                if not isinstance(rule.get("values") or [], list):
                    problems.add(f"{rule_path}.values", "must be a list")


def _spread(vmi: Manifest, placement: Placement, locate: Locate, problems: Problems) -> None:
    """Spreads the pods of one pool. The scheduler takes the pool's name from the pod's labels (`matchLabelKeys`, on by default since
    Kubernetes 1.27). The constraint is soft: an unevenly placed VM is better than none.
    """
    own = vmi.get("topologySpreadConstraints")
    if own:
        if placement.spread is not None:
            at = locate(f"{VMI}.topologySpreadConstraints")
            problems.add(f"{ROOT}.spread", f"and {at} of the template both say how to spread: keep only one of the two")
        return
    spread = placement.spread or Spread.NODES
    if spread is Spread.NONE:
        return
    vmi["topologySpreadConstraints"] = [_soft_spread(_TOPOLOGIES[spread])]


def _soft_spread(topology: str) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {labels.MANAGED_BY: labels.MANAGER}},
        "matchLabelKeys": [labels.INSTANCE, labels.POOL],
    }


def _even_out(domain: Manifest) -> None:
    """A request of CPU or memory without a limit becomes the limit too, and the other way round."""
    resources = domain.get("resources") or {}
    requests, limits = dict(resources.get("requests") or {}), dict(resources.get("limits") or {})
    for name in ("cpu", "memory"):
        if name in requests and name not in limits:
            limits[name] = requests[name]
        elif name in limits and name not in requests:
            requests[name] = limits[name]
    if requests or limits:
        domain["resources"] = {**resources, "requests": requests, "limits": limits}


def _field(found: Contradiction, placement: Placement, locate: Locate) -> str:
    """Where the author wrote it: in the placement if it is there, otherwise in the template."""
    asked: dict[str, object] = placement.model_dump()
    return f"{ROOT}.{found.aspect}" if asked.get(found.aspect) else locate(_FIELDS[found.aspect])


def _amount(value: object) -> Fraction | None:
    return parse_quantity(value) if value is not None else None
