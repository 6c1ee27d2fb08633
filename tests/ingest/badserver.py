"""A web server on this machine that misbehaves by path."""

import collections
import gzip
import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

JPEG_START = b"\xff\xd8\xff\xe0"


def picture(format: str = "JPEG", *, size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((size, size)).convert("RGB").save(file, format)
    return file.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.strip("/").partition("?")[0].partition("/")[0]
        with self.server.lock:
            self.server.hits[name] += 1
            hit = self.server.hits[name]
            self.server.requests[name] = {k.lower(): v for k, v in self.headers.items()}
        getattr(self, f"get_{name}", self.get_image)(hit)

    def answer(self, body: bytes = b"", *, status: int = 200, **fields):
        self.send_response(status)
        fields = {"Content_Type": "image/jpeg", "Content_Length": len(body)} | fields
        for name, value in fields.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, to: str):
        self.answer(status=302, Location=to)

    def get_image(self, hit):
        self.answer(picture())

    def get_png(self, hit):
        self.answer(picture("PNG"))

    def get_webp(self, hit):
        self.answer(picture("WEBP"), Content_Type="text/plain")

    def get_chunked(self, hit):
        self.answer(Content_Length=None, Transfer_Encoding="chunked")
        for chunk in (picture()[:100], picture()[100:], b""):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def get_gone(self, hit):
        self.answer(status=404)

    def get_empty(self, hit):
        self.answer(status=200)

    def get_part(self, hit):
        self.answer(picture(), status=206)

    def get_broken(self, hit):
        self.answer(status=500)

    def get_recovers(self, hit):
        self.answer(status=500) if hit < 3 else self.answer(picture())

    def get_busy(self, hit):
        self.answer(status=429, Retry_After="7") if hit == 1 else self.answer(picture())

    def get_closed(self, hit):
        self.answer(status=503, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT")

    def get_hop(self, hit):
        self.redirect("/image" if self.path.endswith("/2") else "2")

    def get_loop(self, hit):
        self.redirect("/loop")

    def get_to(self, hit):
        self.redirect(self.path.partition("?")[2])

    def get_html(self, hit):
        self.answer(b"<html>please log in</html>")

    def get_gif(self, hit):
        self.answer(picture("GIF"))

    def get_header(self, hit):
        self.answer(JPEG_START + b"nothing of an image")

    def get_bomb(self, hit):  # 20,000 x 20,000 pixels in a few bytes
        png = bytearray(picture("PNG"))
        png[16:24] = struct.pack(">2I", 20_000, 20_000)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        self.answer(bytes(png))

    def get_half(self, hit):  # a whole answer with half an image
        self.answer(picture()[:-200])

    def get_truncated(self, hit):
        self.answer(picture()[:-200], Content_Length=len(picture()))
        self.close_connection = True

    def get_large(self, hit):
        self.answer(Content_Length=10**9)
        self.close_connection = True

    def get_endless(self, hit):
        self.answer(Content_Length=None, Transfer_Encoding="chunked")
        try:
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (10_000, bytes(10_000)))
        except OSError:  # the client hung up
            self.close_connection = True

    def get_gzip(self, hit):
        self.answer(gzip.compress(bytes(10**6)), Content_Encoding="gzip")

    def get_drip(self, hit):
        self.answer(Content_Length=1000)
        try:
            while not self.server.stop.wait(0.02):
                self.wfile.write(b"x")
        except OSError:
            self.close_connection = True

    def get_hang(self, hit):
        self.server.stop.wait()

    def get_hangup(self, hit):
        self.close_connection = True

    def get_nonsense(self, hit):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        self.close_connection = True


class BadServer(ThreadingHTTPServer):
    """Serves until it is left; counts the requests to each path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.hits: collections.Counter[str] = collections.Counter()
        self.requests: dict[str, dict[str, str]] = {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.shutdown()
        self.server_close()
