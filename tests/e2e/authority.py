"""Who issues certificates for services under test."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme


class Authority:
    """Makes certificates for the service, and clients that trust them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self._ca = trustme.CA()

    def issue(self, end: datetime | None = None) -> None:
        """A new certificate, good until `end` or for very long, put in place as certbot does: by renaming."""
        issued = self._ca.issue_cert("localhost", not_after=end)
        for path, blob in ((self.cert, issued.cert_chain_pems[0]), (self.key, issued.private_key_pem)):
            new = path.with_suffix(".new")
            blob.write_to_path(str(new))
            new.rename(path)

    def client(self) -> ssl.SSLContext:
        """A client's context."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context
