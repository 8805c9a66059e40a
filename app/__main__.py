"""The command `emberpool`, also as `python -m app`."""

import sys


def main() -> None:
    """Runs the command. Importing the service takes longer than a client command runs, so that client commands do not."""
    from app.cli.client import program  # noqa: PLC0415 - see above

    if program.takes(sys.argv[1:]):
        program.main()
        return
    from app.cli import program as whole  # noqa: PLC0415 - see above

    whole.main()


if __name__ == "__main__":
    main()
