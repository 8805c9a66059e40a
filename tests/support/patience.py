"""How long a test waits for what has to come.

Long, for a machine that has more to do than processors to do it with: where what is waited for comes, no test takes longer for
it; where it never comes, the test fails so much later.
"""

from typing import Final

PATIENCE: Final = 90.0
