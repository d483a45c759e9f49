"""A proxy on this machine that stands for storage.googleapis.com, and misbehaves as it is told."""

import contextlib
import socketserver
import ssl
import threading
import time

import trustme

HOST = "storage.googleapis.com"


@contextlib.contextmanager
def misbehaving_proxy(behaviour, files, ca_file):
    """Runs the proxy inside the block; yields its URL and a list of the files that were asked for.

    Writes `ca_file`, for $REQUESTS_CA_BUNDLE. Behaviours: "never answers", "404", "login page",
    "breaks off", "breaks off after one file", "stalls"; "is right" serves `files`,
    {name: content}, and "is slow", too, the first of them in 3 s.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    closing, served = threading.Event(), []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):  # the client leaves when it likes
                self.answer()

        def answer(self):
            if behaviour == "never answers":
                closing.wait()
                return
            read_head(self.request)
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with context.wrap_socket(self.request, server_side=True) as stream:
                name = read_head(stream).split()[1].decode().rpartition("/")[2]
                served.append(name)
                self.serve(stream, name)

        def serve(self, stream, name):
            if behaviour == "404":
                stream.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                return
            login = b"<html>Please log in</html>"
            content = login if behaviour == "login page" else files[name]
            stream.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode())
            half = len(content) // 2
            if (behaviour == "breaks off"
                    or behaviour == "breaks off after one file" and len(served) > 1):
                stream.sendall(content[:half])
            elif behaviour == "stalls":
                stream.sendall(content[:half])
                closing.wait()
            elif behaviour == "is slow" and len(served) == 1:
                for part in range(6):
                    first, last = (n * len(content) // 6 for n in (part, part + 1))
                    stream.sendall(content[first:last])
                    time.sleep(0.5)
            else:
                stream.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", served
        finally:
            closing.set()
            server.shutdown()


def read_head(stream):
    """Reads a request up to the empty line that ends it."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = stream.recv(4096)
        if not received:
            raise ConnectionError
        head += received
    return head
