"""Until when a certificate is good, against what another library reads in it."""

import ssl
from datetime import UTC, datetime

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.listening.expiry import expiry

CA = trustme.CA()
ENDS = [datetime(year, 2, 28, 23, 59, 58, tzinfo=UTC) for year in (2024, 2049, 2050, 9999)]
PEM = CA.issue_cert("localhost", not_after=ENDS[0]).cert_chain_pems[0].bytes()


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_both_kinds_of_time(end: datetime) -> None:
    """Two digits of the year up to 2049, four from 2050 on; the chain behind the first certificate is not asked."""
    issued = CA.issue_cert("localhost", not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=end)
    pem = issued.cert_chain_pems[0].bytes()
    assert expiry((pem + CA.cert_pem.bytes()).decode()) == end.timestamp()
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end


def test_text_around_it_does_not_matter() -> None:
    """As openssl writes it above."""
    assert expiry("subject=CN = me\n" + PEM.decode() + "more") == ENDS[0].timestamp()


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate(text: str) -> None:
    """Is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        expiry(text)


@given(st.data())
def test_spoilt_certificates_do_no_harm(data: st.DataObject) -> None:
    """A time, or a ValueError: nothing else."""
    der = bytearray(ssl.PEM_cert_to_DER_cert(PEM.decode()))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, 150))] = data.draw(st.integers(0, 255))
    der = der[: data.draw(st.integers(0, len(der)))]
    try:
        assert isinstance(expiry(ssl.DER_cert_to_PEM_cert(bytes(der))), float)
    except ValueError:
        pass
