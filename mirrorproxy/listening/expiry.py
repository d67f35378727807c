"""Until when a certificate is good. The standard library reads that off a certificate only where it was verified."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

_END = "-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def expiry(pem: str) -> float:
    """When the first certificate in `pem` ends, in seconds since 1970. Raises `ValueError` where it has none.

    Its DER is walked as far as `notAfter` (RFC 5280, 4.1: Certificate, TBSCertificate, Validity); nothing is verified.
    """
    start = pem.find("-----BEGIN CERTIFICATE-----")
    end = pem.find(_END, start)
    if start < 0 or end < 0:
        raise ValueError("there is no certificate in PEM format")
    _, certificate = next(_elements(ssl.PEM_cert_to_DER_cert(pem[start : end + len(_END)]), _SEQUENCE))
    _, signed = next(_elements(certificate, _SEQUENCE))
    fields = [value for tag, value in _elements(signed) if tag != _VERSION]  # version 1 has none
    if len(fields) < 4:
        raise ValueError("the certificate has no validity")
    # serial number, signature, issuer, validity
    times = list(_elements(fields[3]))
    if len(times) != 2:
        raise ValueError("the certificate has no validity")
    tag, text = times[1]
    return _time(tag, text.decode("ascii")).timestamp()


def _time(tag: int, text: str) -> datetime:
    """RFC 5280, 4.1.2.5: UTC, with seconds; two digits of the year are 1950 to 2049."""
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the certificate's validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(data: bytes, wanted: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element in `data` (X.690, 8.1). Raises `ValueError` where it is cut, or not `wanted`."""
    at = 0
    while at < len(data) or wanted is not None:
        if len(data) - at < 2 or wanted not in (None, data[at]):
            raise ValueError("the certificate is not proper DER")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            digits = length & 0x7F
            length, at = int.from_bytes(data[at : at + digits], "big"), at + digits
        if at + length > len(data):
            raise ValueError("the certificate is cut off")
        yield tag, data[at : at + length]
        at, wanted = at + length, None
