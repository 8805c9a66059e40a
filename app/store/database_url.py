"""The URL of the database, read so strictly that no part of a password can be taken for a host, a port or a parameter.

libpq and the driver read lenient: an `@` or a `/` that stands in a password unescaped moves the rest of the password into the
host's name, and so into error messages. No error here, and nothing that `shown` gives, has any part of a password.
"""

import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES: Final = ("postgresql://", "postgres://")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.]+)?\]|[^:\[\]]*)(?::\d{1,5})?")
_ESCAPES: Final = "in a user or password write @ as %40, / as %2F, ? as %3F, # as %23, : as %3A, [ as %5B and % as %25"


class UrlInvalid(ValueError):
    """The message says what is wrong and how to write it."""


def check(url: str) -> None:
    """Raises UrlInvalid if the URL could be read in two ways."""
    if not url.startswith(SCHEMES):
        raise UrlInvalid("a libpq URL begins with postgresql://")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise UrlInvalid("a URL has no spaces and no control characters; write a space as %20")
    authority, rest = re.fullmatch(r"\w+://([^/?#]*)(.*)", url).groups()  # type: ignore[union-attr]  # it begins with a scheme
    credentials, _, hosts = authority.rpartition("@")
    if "@" in credentials or "@" in rest or "#" in rest:
        raise UrlInvalid(f"it can be read in two ways: {_ESCAPES}")
    if not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise UrlInvalid(f"after user and password it has HOST or HOST:PORT, or several with commas; {_ESCAPES}")
    query = rest.partition("?")[2]
    try:
        urlsplit(url)
        parse_qsl(query, strict_parsing=bool(query))
    except ValueError:
        raise UrlInvalid(f"what follows the ? is NAME=VALUE, and more of these after an &; {_ESCAPES}") from None


def has_password(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.password) or any(name in {"password", "sslpassword"} for name, _ in parse_qsl(parts.query))


def shown(url: str) -> str:
    """Where a URL that was checked leads to: hosts and ports, or the folder of the socket, and the database."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    folders = [value for name, value in parse_qsl(parts.query) if name == "host"]
    folder = f"?host={folders[-1]}" if folders and not hosts else ""
    return f"postgresql://{hosts}{unquote(parts.path)}{folder}"
