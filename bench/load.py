"""Load from programs of their own: wrk for throughput, and one plain socket for the latency of one claim at a time."""

import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: requests a second, and milliseconds at p50 and p99. `refused` answers were no success."""

    rate: float
    p50: float
    p99: float
    refused: int


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("the bench needs wrk, the load generator: apt-get install wrk")


def hammer(
    port: int, path: str, *, connections: int, seconds: int, body: str, folder: Path, rate: float | None = None
) -> Load:
    """Posts `body` over so many connections, as fast as answers come, or at about `rate` requests a second in all."""
    script = folder / "post.lua"
    lines = ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"', f"wrk.body = [[{body}]]"]
    if rate is not None:
        # Each connection rests between its requests, a random time of the right mean, so that they do not march in step.
        lines.append(f"function delay() return math.random(0, {max(1, round(2000 * connections / rate))}) end")
    script.write_text("\n".join(lines))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}{path}",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return Load(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", out)),
        p50=_milliseconds(_find(r"\n\s+50%\s+(\S+)", out)),
        p99=_milliseconds(_find(r"\n\s+99%\s+(\S+)", out)),
        refused=int(refused.group(1)) if refused else 0,
    )


class Client:
    """One connection, one request at a time, with as little of its own as a socket allows."""

    def __init__(self, port: int, path: str, body: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def post(self) -> float:
        """Milliseconds from the first byte sent to the whole answer. Exits where the answer is no 201."""
        began = time.perf_counter()
        self._socket.sendall(self._request)
        answer = self._socket.recv(65536)
        took = (time.perf_counter() - began) * 1000
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        while len(rest) < length:
            rest += self._socket.recv(65536)
        if not head.startswith(b"HTTP/1.1 201"):
            raise SystemExit(f"a claim was not served: {head.splitlines()[0].decode()}: {rest.decode()}")
        return took

    def close(self) -> None:
        self._socket.close()


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk printed nothing for {pattern!r}:\n{text}")
    return found.group(1)


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]
