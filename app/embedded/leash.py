"""`python -m app.embedded.leash MODULE ARGUMENT...`: `python -m MODULE ARGUMENT...`, ending with the process that started it.

The parent holds the other end of our standard input and never writes to it. However the parent dies, the system closes that end;
this process then stops as on SIGTERM. (Linux's PR_SET_PDEATHSIG is not on macOS, and follows a thread, not a process.)
"""

import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

_STOP_SECONDS: Final = 5


def main() -> None:
    threading.Thread(target=_stop_when_let_go, name="leash", daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _stop_when_let_go() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os._exit(1)  # SIGTERM had no effect, and no parent is left to kill this process


if __name__ == "__main__":
    main()
