"""`python leash.py PROGRAM ARGUMENT...`: the program, killed as soon as standard input is closed.

The parent holds the other end of standard input and writes nothing to it. However the parent dies, the system closes that end.
It is a script, not a module to import: it must start fast.
"""

import os
import subprocess
import sys
import threading


def main() -> int:
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603  # what our parent names

    def kill_when_let_go() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        program.kill()

    threading.Thread(target=kill_when_let_go, daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
