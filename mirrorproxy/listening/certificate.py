"""The certificate of the service, taken over anew whenever its files change."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import NamedTuple

from mirrorproxy.listening.expiry import expiry

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds; it costs two calls of stat


class Files(NamedTuple):
    """A certificate chain and its private key, as PEM files."""

    cert: Path
    key: Path


class Certificate:
    """A server's TLS context over a certificate file and a key file.

    The context stays the same object, so that listening sockets need not know: new connections get the new certificate.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._seen = self._marks()
        self.context = _context(files)
        self.expires = _expires(files)
        """When it ends, in seconds since 1970; None where that cannot be read."""

    def use(self, files: Files) -> None:
        """Other files from now on."""
        self._files = files
        self._seen = ()

    async def watch(self) -> None:
        """Look at the files now and then, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take over what changed. What does not fit together (half a replacement) is looked at again next time."""
        marks = self._marks()
        if marks == self._seen:
            return
        try:
            _context(self._files)  # a trial: loading a key that does not fit would spoil the one in use
            self.context.load_cert_chain(self._files.cert, self._files.key)
            self.expires = _expires(self._files)
        except OSError as error:
            log.error("the new certificate is not taken over, the old one stays in use: %s", error)
        else:
            log.info("the certificate in %s is in use now", self._files.cert)
        self._seen = marks

    def _marks(self) -> tuple[object, ...]:
        return tuple(_mark(path) for path in (self._files.cert, self._files.key))


def _expires(files: Files) -> float | None:
    try:
        return expiry(files.cert.read_text("ascii", "replace"))
    except (OSError, ValueError) as error:
        log.warning("until when %s is good cannot be read: %s", files.cert, error)
        return None


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _context(files: Files) -> ssl.SSLContext:
    """Raises `OSError` where certificate and key cannot be used, or not together."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files.cert, files.key)
    except OSError as error:  # of which ssl.SSLError is one; neither says which file
        reason = error.strerror or error
        raise OSError(f"the certificate {files.cert} with the key {files.key}: {reason}") from None
    # The client knows what its processor has instructions for: runtimes in Go name AES-128 first, and ChaCha20 where
    # there are none for AES (a small ARM board). OpenSSL by itself takes AES-256 from all.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    return context
