"""Packages of Debian and its relatives, fetched with the host's own apt: no root, nothing installed, no mirror that we would have to know.

apt reads the system's lists of packages. Where these are missing or too old, it makes lists of its own in a folder of ours.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.devcluster.guests.images.errors import PackagesUnavailable

_FIRST_ALTERNATIVE: Final = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")


@dataclass(frozen=True, slots=True)
class Package:
    """`depends` has the first of each list of alternatives."""

    name: str
    version: str
    depends: tuple[str, ...]


class Apt:
    """`folder` is ours alone: apt's own lists and caches go there when the system's do not do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: list[str] = []

    @staticmethod
    def is_here() -> bool:
        return all(shutil.which(program) for program in ("apt-get", "apt-cache", "dpkg-deb"))

    async def look_up(self, names: Iterable[str]) -> dict[str, Package]:
        """The newest version of each package that apt knows; the others are left out."""
        asked = list(names)
        if not asked:
            return {}
        output = await self._run("apt-cache", "show", "--no-all-versions", *asked, may_fail=True)
        packages = [_package(paragraph) for paragraph in output.split("\n\n") if paragraph.strip()]
        return {package.name: package for package in packages}

    async def with_dependencies(self, roots: Iterable[str], follow: Callable[[str], bool]) -> dict[str, Package]:
        """The packages and, again and again, those of their dependencies whose names `follow` accepts."""
        found: dict[str, Package] = {}
        asked = set(roots)
        waiting = asked
        while waiting:
            known = await self.look_up(sorted(waiting))
            found |= known
            waiting = {name for package in known.values() for name in package.depends if follow(name)} - asked
            asked |= waiting
        return found

    async def refresh(self) -> None:
        """Make lists of our own, and use them from now on. Raises PackagesUnavailable if the mirrors cannot be reached."""
        lists, archives = self._folder / "state/lists/partial", self._folder / "cache/archives/partial"
        for folder in (lists, archives):
            folder.mkdir(parents=True, exist_ok=True)
        self._options = [f"Dir::State={self._folder / 'state'}", f"Dir::Cache={self._folder / 'cache'}"]
        self._options.append("Dir::State::status=/var/lib/dpkg/status")
        await self._run("apt-get", "--error-on=any", "update")

    async def download(self, packages: Sequence[Package], into: Path) -> None:
        """Fetch the packages' files. apt checks them against the signed lists. Raises PackagesUnavailable if one cannot be had."""
        await self._run(
            "apt-get", "download", *(f"{package.name}={package.version}" for package in packages), folder=into
        )

    async def unpack(self, files: Path, into: Path) -> None:
        """Unpack all packages of one folder."""
        for file in await asyncio.to_thread(lambda: sorted(files.glob("*.deb"))):
            await self._run("dpkg-deb", "--extract", str(file), str(into))

    async def _run(self, program: str, *arguments: str, folder: Path | None = None, may_fail: bool = False) -> str:
        options = self._options if program != "dpkg-deb" else []
        if program == "apt-get" and os.geteuid() == 0:
            options = [*options, "APT::Sandbox::User=root"]  # apt's own user cannot write into folders of ours
        process = await asyncio.create_subprocess_exec(
            program,
            *(word for option in options for word in ("-o", option)),
            *arguments,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0 and not may_fail:
            raise PackagesUnavailable(f"`{program} {arguments[0]}` failed: {_reason(errors.decode(errors='replace'))}.")
        return output.decode(errors="replace")


def _package(paragraph: str) -> Package:
    fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" "))
    needs = ",".join(fields.get(key, "") for key in ("Pre-Depends", "Depends")).split(",")
    names = [match[1] for need in needs if (match := _FIRST_ALTERNATIVE.match(need))]
    return Package(fields["Package"], fields["Version"], tuple(names))


def _reason(errors: str) -> str:
    """The first error of apt; what follows is mostly about the same."""
    lines = [line.removeprefix("E: ") for line in errors.splitlines() if line.startswith("E: ")] or errors.splitlines()[
        -1:
    ]
    return lines[0] if lines else "it said nothing"
