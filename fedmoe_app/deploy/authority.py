"""What TLS and node authentication are made of: a certificate authority, server keys, node keys.

Everything is ECDSA over P-384, the curve that Flower's node authentication takes. Functions return
PEM or OpenSSH bytes and touch no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_NAME = "fedmoe certificate authority"
# The SuperExec beside a SuperLink reaches it by these (containers: by its service name), whatever
# else the machine is called.
OWN_NAMES = ("localhost", "superlink", "127.0.0.1", "::1")
# Clocks of lab machines differ.
CLOCK_SKEW = timedelta(hours=1)
CA_DAYS = 3650


class Pair(NamedTuple):
    """A private key and what is made public of it, as the bytes of two files."""

    private: bytes
    public: bytes


def make_authority(now: datetime, days: int) -> Pair:
    """Make a certificate authority of its own: key and self-signed certificate, both PEM."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(CA_NAME)
    ends = now + timedelta(days=max(days, CA_DAYS))
    builder = _builder(name, name, key.public_key(), now, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Pair(_pem(key), _certificate(builder, key))


def make_server(authority: Pair, hosts: Sequence[str], now: datetime, days: int) -> Pair:
    """Make a server's key and certificate (PEM) for DNS names and IP addresses.

    ``OWN_NAMES`` are added to the hosts. The certificate never outlives its authority.
    """
    ca_key = _load_key(authority)
    ca = x509.load_pem_x509_certificate(authority.public)
    key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys([*hosts, *OWN_NAMES]))
    # The common name is for people, of 64 characters at most; who checks reads the names below.
    ends = min(now + timedelta(days=days), ca.not_valid_after_utc)
    builder = _builder(_name(names[0][:64]), ca.subject, key.public_key(), now, ends)
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(usage, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return Pair(_pem(key), _certificate(builder, ca_key))


def make_node_key(comment: str) -> Pair:
    """Make a node's key pair as ``ssh-keygen -t ecdsa -b 384`` does; Flower reads no other form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return Pair(private, public + f" {comment}\n".encode())


def matches(authority: Pair) -> bool:
    """Tell whether the authority's key is the one of its certificate."""
    certificate = x509.load_pem_x509_certificate(authority.public)
    return _load_key(authority).public_key() == certificate.public_key()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _certificate(builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.private, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic-curve key")
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
