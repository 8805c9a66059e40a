"""The command `emberpool`, also as `python -m app`."""

import sys


def main() -> None:
    """Runs the command. Reading the service takes longer than all that a client does, and so a client does not."""
    from app.cli.client import program  # noqa: PLC0415 - see above

    if program.takes(sys.argv[1:]):
        program.main()
        return
    from app.cli import server_commands as cli  # noqa: PLC0415 - see above

    cli.main()


if __name__ == "__main__":
    main()
