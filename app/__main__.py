"""`python -m app` is the command `emberpool`."""

from app.cli import main

main()
