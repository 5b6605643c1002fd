"""A server that knows as much of W&B as ``wandb.init`` asks for, and goes silent on command, without a word."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RUN = {
    "id": "cnVu", "name": "run", "displayName": "run", "config": "{}", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "cA==", "name": "geexp", "entity": {"id": "ZQ==", "name": "somebody"}},
}  # fmt: skip


@contextmanager
def fake_wandb(silent: Path) -> Iterator[dict[str, str]]:
    """What to put into the environment; from when the file ``silent`` exists nobody gets an answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while silent.exists():
                time.sleep(0.1)
            known = (
                {"upsertBucket": {"bucket": _RUN, "inserted": True}} if b"upsertBucket" in asked else {"model": None}
            )
            content = json.dumps({"data": known}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}"}
    finally:
        server.shutdown()
        server.server_close()
