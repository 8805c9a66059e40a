"""VM templates as values that every layer carries and only the compute layer opens."""

from typing import Any, NewType

WrittenTemplate = dict[str, Any]
"""A template as its author wrote it, as JSON: in the short form, or in a form that the cluster's runtime documents."""

VmSpec = NewType("VmSpec", object)
"""What a VM is made from: JSON that the gateway wrote when it expanded a template.

It is stored and given back to the gateway. Its content belongs to the runtime, so nothing else reads or changes it; the type
hides the content from the type checker. Ask the gateway for what you need of it.
"""
