"""A server of files on this machine that can break off, ignore ranges, change its files and send web pages."""

import contextlib
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        body = server.files.get(self.path)
        if self.path in server.busy:
            server.busy.remove(self.path)
            self.send_error(503)
            return
        if body is None:
            self.send_error(404)
            return
        tag = f'"{hash(body)}"'
        same = self.headers.get("If-Range") in (None, tag)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and same and server.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Content-Type", "text/html" if body.startswith(b"<html") else "application/octet-stream")
        self.send_header("ETag", tag)
        self.end_headers()
        if server.breaks > 0:
            server.breaks -= 1
            rest = rest[: server.stop_after]
        with contextlib.suppress(ConnectionError):
            self.wfile.write(rest)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve():
    """The server: files is path -> content, breaks the number of answers that end after stop_after bytes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.busy = {}, [], []
    server.ranges, server.breaks, server.stop_after = True, 0, 1000
    server.home = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
