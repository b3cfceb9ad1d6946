"""The federation's own certificate authority, by which hospitals know its server.

Certificates hold to what OpenSSL 3 asks for in strict verification (RFC 5280).
"""

import ipaddress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfusion.atomic_files import make_folder
from medfusion.errors import ConfigError
from medfusion.federation.kit import CA
from server.provision.private_keys import new_key_pem, read_key
from server.provision.steps import put, put_secret

_YEARS = 10
_CLOCKS_DIFFER = timedelta(days=1)  # a hospital's clock may be behind
_LOCAL = ("localhost", "127.0.0.1", "::1")  # the control port has the same certificate


class Authority:
    """The certificate in a folder, and its key, which is needed for new certificates only."""

    def __init__(self, folder: Path, *, federation: str, now: datetime) -> None:
        self._key_path = folder / "ca.key"
        path = folder / CA
        self.certificate = read_certificate(path, remedy="restore it: a kit holds a copy")
        names = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        name = names[0].value if names else None
        if name != federation:
            raise ConfigError(
                f"{path}: belongs to the federation {name!r}, expected {federation!r}; a "
                "federation keeps its name: choose another OUT for a new one"
            )
        if self.expires <= now:
            raise ConfigError(
                f"{path}: the authority expired on {self.expires:%Y-%m-%d}; provision a new "
                "federation in another OUT"
            )

    @classmethod
    def create(cls, folder: Path, *, federation: str, now: datetime) -> Self:
        """Make what is missing of an authority and open it; a key that is there stays."""
        make_folder(folder, mode=0o700)
        put_secret(folder / "ca.key", new_key_pem)
        key = read_key(folder / "ca.key")
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
                x509.NameAttribute(NameOID.COMMON_NAME, "MedFusion authority"),
            ]
        )
        builder = _builder(name, name, key.public_key(), now, _after_years(now))
        usage = _key_usage(key_cert_sign=True, crl_sign=True)
        signed = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA384())
        )
        put(folder / CA, signed.public_bytes(Encoding.PEM))
        return cls(folder, federation=federation, now=now)

    @property
    def pem(self) -> bytes:
        """The certificate as it goes into kits."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def expires(self) -> datetime:
        """Until when the authority, and so all that it signs, is valid."""
        return self.certificate.not_valid_after_utc

    def issue(
        self, key: ec.EllipticCurvePublicKey, host: str, *, now: datetime, expires: datetime
    ) -> bytes:
        """Return a certificate for a server at a host and on its own machine, as PEM.

        Raises
        ------
        ConfigError
            If the authority's key is missing or another one.
        """
        ca_key = read_key(self._key_path)
        if ca_key.public_key() != self.certificate.public_key():
            raise ConfigError(
                f"{self._key_path}: is not the key of ca.pem beside it; restore the one that is"
            )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MedFusion server")])
        builder = _builder(subject, self.certificate.subject, key, now, expires)
        authority_id = self.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(server_names(host), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id.value),
                critical=False,
            )
            .sign(ca_key, hashes.SHA384())
            .public_bytes(Encoding.PEM)
        )

    def has_issued(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePublicKey, host: str
    ) -> bool:
        """Whether a certificate is this authority's for a key and a server at a host."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return certificate.public_key() == key and names.value == server_names(host)


def read_certificate(path: Path, *, remedy: str) -> x509.Certificate:
    """Read a certificate; raises `ConfigError` with a remedy."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError:
        raise ConfigError(
            f"{path}: expected a certificate as PEM, found a damaged file; {remedy}"
        ) from None


def server_names(host: str) -> x509.SubjectAlternativeName:
    """Return the names under which a server answers: its host and those of its own machine."""
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((host, *_LOCAL)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(names)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    expires: datetime,
) -> x509.CertificateBuilder:
    """Begin a certificate with what all have."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _after_years(now: datetime) -> datetime:
    return now + timedelta(days=round(_YEARS * 365.25))
