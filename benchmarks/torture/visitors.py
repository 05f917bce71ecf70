"""The page under attack from the network and from other tabs: uploads, junk and foreign names, over HTTP.

The server stays alive, its memory bounded and its stderr without a traceback; it hands out nothing of the disk that the
page does not serve; and it refuses requests for another Host or from another Origin.
"""

import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.torture.forks import command, poll, start

MEMORY, SECONDS = 2 * 2**30, 60.0  # more than the page takes by itself; of one request
MOST, SHORT = 2**22, 3.0  # bytes of an answer that are read; seconds of a stream that may never end
SECRET = "the secret of the torture"
API = "/gradio_api"
Request = tuple[str, str, dict[str, str], bytes]  # method, path, headers, body


class Answer(NamedTuple):
    status: int
    body: bytes
    whole: bool  # a stream of events may stay open


class Page(NamedTuple):
    """A served page and its config."""

    pid: int
    port: int
    out: Path
    secret: Path  # a file that it does not serve
    functions: dict[int, list[str]]  # of each the kinds of its inputs
    resident: int  # bytes at most, before anybody came


def serve(folder: Path, secret: Path, out: Path) -> Page:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pid, began = start(command("pipeline/app.py", "run", "--port", port), folder, out), time.monotonic()
    while "the page is at" not in out.with_suffix(".out").read_text(errors="replace"):
        ended = poll(pid, out, began)
        assert ended is None and time.monotonic() - began < 120, out.with_suffix(".err").read_text()[-2000:]
        time.sleep(0.1)
    config = json.loads(ask(port, ("GET", "/config", {}, b"")).body)
    kinds = {each["id"]: each["type"] for each in config["components"]}
    functions = {each["id"]: [kinds.get(number, "") for number in each["inputs"]] for each in config["dependencies"]}
    return Page(pid, port, out, secret, functions, resident(pid))


def stop(page: Page) -> None:
    os.killpg(page.pid, signal.SIGKILL)
    os.waitpid(page.pid, 0)


def resident(pid: int) -> int:
    """Return the most bytes that a process has had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def ask(port: int, request: Request, seconds: float = SECONDS) -> Answer:
    """Send a request and read its answer, for so long at most. Status 0 where the connection is closed instead.

    Raises:
        TimeoutError: not even the head of an answer comes.
    """
    method, path, headers, body = request
    connection, end = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS), time.monotonic() + seconds
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found, whole = bytearray(), False
        while not whole and time.monotonic() < end and len(found) < MOST:
            some = answer.read1(2**16)
            found += some
            whole = not some
        return Answer(answer.status, bytes(found), whole)
    except (http.client.HTTPException, ConnectionError):
        return Answer(0, b"", True)
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------------------- requests


@cache
def bomb(side: int) -> bytes:
    """Return a PNG of so many pixels a side, all black, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, line = zlib.compressobj(1), bytes(1 + side * 3)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", bytes(2**20))
    return file.getvalue()


@cache
def uploads() -> dict[str, bytes]:
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({SECRET}) print (torture) (w) file\nshowpage\n"
    return {
        "bomb.png": bomb(8000),
        "larger.png": bomb(14_000),
        "eps.png": eps.encode(),
        "text.png": b"no picture",
        "empty.png": b"",
        "page.png": b"<html><script>alert(1)</script>",
        "drawing.svg": b"<svg onload='alert(1)'/>",
        "packed.png": zipped(),
        "program.exe": b"MZ" + bytes(100),
        "../../up.png": bomb(8),
        "a" * 300 + ".png": bomb(8),
        "cut.png": bomb(64)[:60],
        "\u202egnp.png": bomb(8),
        "right.png": bomb(8),
    }


def multipart(name: str, content: bytes) -> tuple[dict[str, str], bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    return {"Content-Type": "multipart/form-data; boundary=x"}, head.encode() + content + b"\r\n--x--\r\n"


def junk(draw: random.Random) -> Any:
    """Return a JSON value of any kind, some of them files that are none of the page's."""
    file = {
        "path": draw.choice(["/etc/passwd", "secret.txt", "../secret.txt", "/dev/zero", "", "\0"]),
        "meta": {"_type": "gradio.FileData"},
    }
    address = {
        "path": None,
        "url": draw.choice(["http://127.0.0.1:9/x.png", "file:///etc/passwd", "//x"]),
        "meta": {"_type": "gradio.FileData"},
    }
    inline = "data:image/png;base64," + base64.b64encode(bomb(draw.choice([8, 4000]))).decode()
    return draw.choice(
        [
            None,
            True,
            -1,
            0,
            10**30,
            1e308,
            float("nan"),
            "",
            "x" * 100_000,
            "<script>",
            [],
            {},
            [[[[]]]],
            {"index": 10**9},
            file,
            address,
            {"path": inline},
            {"composite": file, "background": file, "layers": [file] * 3},
            [file] * 50,
            inline,
        ]
    )


def join(number: object, data: object, session: object) -> Request:
    """Return a request to join the queue of one function."""
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session, "event_data": None}).encode()
    return "POST", f"{API}/queue/join", {"Content-Type": "application/json"}, body


def wandering(page: Page, draw: random.Random) -> Request:
    """Return a request whose path leads to a file that the page does not serve."""
    target = draw.choice(
        [
            str(page.secret),
            "/etc/passwd",
            "../../secret.txt",
            "%2e%2e/%2e%2e/secret.txt",
            "/proc/self/environ",
            "file:///etc/passwd",
            "http://127.0.0.1:9/",
            f"http://127.0.0.1:{page.port}/config",
        ]
    )
    places = [
        f"{API}/file=",
        f"{API}/file/",
        f"{API}/proxy=",
        f"{API}/stream/",
        f"{API}/upload_progress?upload_id=",
        f"{API}/download/",
        f"{API}/component_server/",
        f"{API}/custom_component/x/client/component/",
        "/file=",
        "/static/",
        "/assets/",
        "/svelte/",
        "/theme.css/../",
        "/monitoring/",
        "/",
    ]
    return draw.choice(["GET", "GET", "POST", "DELETE", "HEAD"]), draw.choice(places) + target, {}, b""


def malformed(draw: random.Random) -> Request:
    """Return a request whose form is wrong."""
    paths = ["queue/join", "upload", "call/draw", "run/predict", "reset", "cancel", "queue/data", "api/0"]
    path = f"{API}/{draw.choice(paths)}"
    headers: dict[str, str] = draw.choice(
        [
            {},
            {"Content-Type": "application/json"},
            {"Content-Type": "multipart/form-data; boundary=x"},
            {"Content-Type": "multipart/form-data"},
            {"X-Long": "x" * 60_000},
            {"Cookie": "a=" * 2000},
        ]
    )
    body = draw.choice(
        [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b"--x\r\n", b'{"data": 1}', draw.randbytes(2000)]
    )
    return draw.choice(["POST", "PUT", "PATCH", "GET"]), path, headers, body


def foreign(page: Page, draw: random.Random) -> Request:
    """Return a valid request, but for a foreign name or from a foreign page."""
    method, path, headers, body = draw.choice(
        [
            ("GET", "/", {}, b""),
            ("GET", "/config", {}, b""),
            ("POST", f"{API}/upload", *multipart("x.png", bomb(8))),
            join(draw.choice(list(page.functions)), [], "foreign"),
        ]
    )
    host, origin = f"127.0.0.1:{page.port}", "http://evil.example"
    if method == "POST" and draw.random() < 0.5:
        return (
            method,
            path,
            headers | {"Host": host, "Origin": draw.choice([origin, f"http://127.0.0.1.evil.example:{page.port}"])},
            body,
        )
    name = draw.choice(
        ["evil.example", f"evil.example:{page.port}", "127.0.0.1.evil.example", "evil.example#127.0.0.1"]
    )
    return method, path, headers | {"Host": name, "Origin": f"http://{name}"}, body


# --------------------------------------------------------------------------------------------------------------- visits


def visit_upload(page: Page, draw: random.Random) -> Iterator[str]:
    """Upload something, then give it to a function that takes a picture."""
    name, content = draw.choice(list(uploads().items()))
    headers, body = multipart(name, content)
    answer = ask(page.port, ("POST", f"{API}/upload", headers, body))
    if answer.status != 200:
        return
    path = json.loads(answer.body)[0]
    takers = [number for number, kinds in page.functions.items() if any("image" in kind for kind in kinds)]
    number = draw.choice(takers or list(page.functions))
    file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    drawing = {"background": file, "composite": file, "layers": []}
    kinds = page.functions[number]
    data = [drawing if kind == "imageeditor" else file if "image" in kind else None for kind in kinds]
    yield from queued(page, number, data, draw)


def visit_queue(page: Page, draw: random.Random) -> Iterator[str]:
    """Send junk to a function, of its number of inputs or of another."""
    number = draw.choice([*page.functions, *page.functions, -1, 10**9, "x", None])
    wanted = len(page.functions.get(number, [])) if isinstance(number, int) else 0
    data = draw.choice([[junk(draw) for _ in range(wanted)], [junk(draw)] * draw.randrange(4), junk(draw)])
    yield from queued(page, number, data, draw)


def queued(page: Page, number: object, data: object, draw: random.Random) -> Iterator[str]:
    """Join the queue and wait for the result."""
    session = draw.choice(["s" + str(draw.getrandbits(40)), "s" + str(draw.getrandbits(40)), "", None, 7, "../x"])
    if ask(page.port, join(number, data, session)).status == 200 and isinstance(session, str):
        answer = ask(page.port, ("GET", f"{API}/queue/data?session_hash={session}", {}, b""))
        yield from handed_out(answer)
        if not answer.whole:
            yield f"function {number} has not answered in {SECONDS:.0f} s"


def handed_out(answer: Answer) -> Iterator[str]:
    """Yield what an answer holds of the disk."""
    if SECRET.encode() in answer.body or b"root:x:0" in answer.body or b"HF_HOME=" in answer.body:
        yield f"a file was handed out: {answer.body[:100]!r}"


def visit_foreign(page: Page, draw: random.Random) -> Iterator[str]:
    request = foreign(page, draw)
    answer = ask(page.port, request)
    if not 400 <= answer.status < 500:
        names = {name: value for name, value in request[2].items() if name in ("Host", "Origin")}
        yield f"{request[0]} {request[1]} of {names} is answered with {answer.status}"


def visit_wandering(page: Page, draw: random.Random) -> Iterator[str]:
    yield from handed_out(ask(page.port, wandering(page, draw), SHORT))


def visit_malformed(page: Page, draw: random.Random) -> Iterator[str]:
    yield from handed_out(ask(page.port, malformed(draw), SHORT))


VISITS = (visit_upload, visit_queue, visit_queue, visit_foreign, visit_wandering, visit_malformed)


def grown(page: Page) -> int:
    """Return the most bytes that a page has had resident beyond those at its start."""
    return resident(page.pid) - page.resident


def state(page: Page) -> Iterator[str]:
    """Yield what is wrong with a page after its visits."""
    if ask(page.port, ("GET", "/", {}, b"")).status != 200:
        yield "the page is not served any more"
    if grown(page) > MEMORY:
        yield f"{grown(page) / 2**30:.2f} GiB more"
    err = page.out.with_suffix(".err").read_text(errors="replace")
    if "Traceback" in err:
        yield f"a traceback: {err[-400:]}"


def torture(work: Path, number: int, seed: int) -> dict[str, Any]:
    """Visit the page of the finished chain so often."""
    draw, wrong, kinds, slowest = random.Random(seed), list[str](), Counter[str](), 0.0
    secret = work / "secret.txt"
    secret.write_text(SECRET)
    page = serve(work / "reference", secret, work / "out/visitors")
    try:
        for _ in range(number):
            visit, began = draw.choice(VISITS), time.monotonic()
            try:
                wrong += visit(page, draw)
            except TimeoutError:
                wrong.append(f"{visit.__name__}: no answer in {SECONDS:.0f} s")
            kinds[visit.__name__.removeprefix("visit_")] += 1
            slowest = max(slowest, time.monotonic() - began)
        wrong += state(page)
        more = grown(page)
    finally:
        stop(page)
    return {
        "requests": number,
        "kinds": dict(kinds),
        "slowest_seconds": round(slowest, 1),
        "bytes_more": more,
        "wrong": wrong,
    }
