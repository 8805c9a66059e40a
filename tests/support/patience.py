"""How long a test waits, in seconds, for a condition that has to become true.

It is far more than any test needs, so that a machine with more work than processors fails none. A wait ends as soon as its
condition holds: only a test that fails takes this long.
"""

from typing import Final

PATIENCE: Final = 90.0
