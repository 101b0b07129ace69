"""TLS 1.3 as a filter between a socket's bytes and the channel's frames; it owns no socket and never waits.

`Channel` feeds what arrived and sends what `take` gives, so a handshake that stops half way is met by the same
deadlines as any other silence. TLS hides and protects the control channel, rkeys among it; the data itself is RoCE, in
clear.

Who is trusted: a server whose certificate a CA of `--tls-ca` has signed for the host the user named, or that is the
very one of `--tls-fingerprint`; a client whose certificate a CA of `--tls-client-ca` has signed. A token is asked for
inside all the same, and its proof covers the server's certificate (`TlsFilter.binding`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from pathlib import Path

from p2prw.engine.model import TlsClient, TlsServer
from p2prw.errors import HostError, P2prwError, PeerRefusedError, RemoteProtocolError, RequestError

SYSTEM_CAS = "system"
"""`--tls-ca system`: what this host trusts anyway."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of openssl/x509_vfy.h
_WRONG_HOST = frozenset({62, 64})


class TlsFilter:
    """One connection. `feed` what arrived, `read` until it gives nothing, send what `take` gives.

    Once an error was raised, `take` gives the alert for the peer, and nothing else is of use.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        host: str | None = None,
        fingerprint: str | None = None,
        binding: bytes = b"",
    ) -> None:
        """A server has the `binding` of its own certificate; a client names the `host` it means."""
        self.server_side = host is None
        self.established = False
        self.begun = False
        """Bytes of the peer were taken in."""
        self.ended = False
        """The peer has said that nothing follows."""
        self.failed = False
        self.binding = binding
        """SHA-256 of the server's certificate, at either end, once `established`."""
        self._host = host
        self._fingerprint = fingerprint
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = bytearray()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=self.server_side, server_hostname=host)
        if not self.server_side:
            self._shake()

    def __repr__(self) -> str:
        state = "failed" if self.failed else "established" if self.established else "handshake"
        return f"<TlsFilter {'server' if self.server_side else 'client'} {state}>"

    @property
    def unsent_bytes(self) -> int:
        """Plain bytes that wait for the end of the handshake."""
        return len(self._unsent)

    @property
    def untaken_bytes(self) -> int:
        """Bytes that wait for `take`."""
        return self._outgoing.pending

    def feed(self, data: bytes) -> None:
        """Take bytes of the socket. PeerRefusedError or RemoteProtocolError where TLS ends here."""
        self.begun = True
        self._incoming.write(data)
        if not self.established:
            self._shake()

    def read(self, most_bytes: int) -> bytes:
        """Return plain bytes; none: feed more, or `ended`. Errors as `feed`."""
        if not self.established:
            return b""
        try:
            data = self._tls.read(most_bytes)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise self._failure(error) from error
        self.ended = not data
        return data

    def write(self, data: bytes) -> None:
        """Take plain bytes to send; before the end of the handshake they wait, after an error they are dropped."""
        if self.failed:
            return
        if not self.established:
            self._unsent += data
            return
        try:
            while data:
                data = data[self._tls.write(data) :]
        except ssl.SSLError as error:
            raise self._failure(error) from error

    def take(self) -> bytes:
        """Return what is to be sent now."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say that nothing follows, for `take`."""
        if self.established and not self.failed:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the peer's own goodbye is not waited for

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise self._failure(error) from error
        if not self.server_side:
            certificate = self._tls.getpeercert(binary_form=True)
            assert certificate is not None  # there is no TLS 1.3 server without one
            self.binding = hashlib.sha256(certificate).digest()
            self._check_fingerprint()
        self.established = True
        self.write(bytes(self._unsent))
        self._unsent.clear()

    def _check_fingerprint(self) -> None:
        found = self.binding.hex()
        if self._fingerprint is not None and not hmac.compare_digest(found, self._fingerprint):
            self.failed = True
            raise PeerRefusedError(
                "the server's certificate is not the one of --tls-fingerprint",
                why=f"it is sha256:{found}",
                fix="the server prints its own when it starts; another one means another server, or one in between",
                code="tls_fingerprint",
            )

    def _failure(self, error: ssl.SSLError) -> P2prwError:
        self.failed = True
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._not_trusted(error)
        if "certificate required" in reason:
            return PeerRefusedError(
                "the server wants a client certificate",
                why="it was started with --tls-client-ca",
                fix="--tls-cert FILE --tls-key FILE, signed by that CA",
                code="tls_client_certificate",
                side="remote",
            )
        if "peer did not return a certificate" in reason:
            return PeerRefusedError(
                "the client has no certificate",
                why="the server was started with --tls-client-ca",
                fix="--tls-cert FILE --tls-key FILE at the client, signed by that CA",
                code="tls_client_certificate",
            )
        if "alert" in reason:
            return PeerRefusedError(
                f"the other end broke TLS off: {reason}",
                why="it does not trust our certificate, or speaks no TLS 1.3",
                fix="look at the output of the other end",
                code="tls_refused",
                side="remote",
            )
        return RemoteProtocolError(
            f"TLS with the other end failed: {reason}",
            why="p2prw speaks TLS 1.3 only" if "protocol" in reason or "version" in reason else None,
            fix="openssl s_client -connect HOST:PORT -tls1_3 shows what is said",
            code="tls_failed",
        )

    def _not_trusted(self, error: ssl.SSLCertVerificationError) -> PeerRefusedError:
        if self.server_side:
            return PeerRefusedError(
                f"the client's certificate is not trusted: {error.verify_message}",
                why="no CA of --tls-client-ca has signed it",
                fix="--tls-cert at the client with one that is signed by that CA",
                code="tls_untrusted",
            )
        if error.verify_code in _WRONG_HOST:
            return PeerRefusedError(
                f"the server's certificate is not for {self._host}",
                why=f"{error.verify_message}; it must hold that very name or address (subjectAltName)",
                fix="name the server as its certificate does, or pin the certificate with --tls-fingerprint",
                code="tls_wrong_host",
            )
        return PeerRefusedError(
            f"the server's certificate is not trusted: {error.verify_message}",
            why="no CA of --tls-ca has signed it",
            fix="--tls-ca FILE with its CA (or with the certificate itself, when it is self-signed)",
            code="tls_untrusted",
        )


def client_filter(options: TlsClient, host: str) -> TlsFilter:
    """Return a filter for a connection to `host`. HostError: a file cannot be used; RequestError: nobody to trust."""
    if options.ca_file is None and options.fingerprint is None:
        raise RequestError(
            "TLS without anything to trust",
            why="a certificate that nobody checks hides nothing from whoever is in between",
            fix="--tls-ca FILE, or --tls-fingerprint with what the server prints when it starts",
            code="usage",
        )
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if options.ca_file is None:
        # The pinned certificate is the whole trust: neither its issuer nor the names in it matter.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca_file == SYSTEM_CAS:
        context.load_default_certs()
    else:
        _load_cas(context, options.ca_file, "--tls-ca")
    if options.cert_file is not None:
        _load_certificate(context, options.cert_file, options.key_file)
    # An IPv6 zone is this host's business, no certificate holds it.
    return TlsFilter(context, host=host.partition("%")[0], fingerprint=options.fingerprint)


class TlsDoor:
    """A server's certificate, loaded once; a filter for each client."""

    def __init__(self, options: TlsServer) -> None:
        """HostError: a file cannot be used."""
        self._context = _context(ssl.PROTOCOL_TLS_SERVER)
        _load_certificate(self._context, options.cert_file, options.key_file)
        # A ticket would let a client come back without its certificate being looked at again.
        self._context.num_tickets = 0
        if options.client_ca_file is not None:
            _load_cas(self._context, options.client_ca_file, "--tls-client-ca")
            self._context.verify_mode = ssl.CERT_REQUIRED
        found = _CERTIFICATE.search(Path(options.cert_file).read_bytes())
        assert found is not None  # it was loaded
        self._binding = hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0].decode())).digest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate as `--tls-fingerprint` takes it."""
        return self._binding.hex()

    def filter(self) -> TlsFilter:
        """Return a filter for one client."""
        return TlsFilter(self._context, binding=self._binding)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load_cas(context: ssl.SSLContext, path: str, option: str) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise HostError(
            f"cannot use the CA file {path}: {_words(error)}",
            why=f"{option} takes one or more certificates in PEM",
            fix=f"openssl x509 -in {path} -noout -subject -enddate",
            code="tls_ca",
            errno=None if isinstance(error, ssl.SSLError) else error.errno,
        ) from error


def _load_certificate(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    _check_key_mode(key_file or cert_file)
    try:
        # A password is never asked for on the terminal: nobody sits before a server.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise HostError(
            f"cannot use the certificate {cert_file} with the key {key_file or cert_file}: {_words(error)}",
            why="they must be PEM, belong together, and the key must have no password",
            fix="openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=$(hostname) "
            '-addext "subjectAltName=DNS:$(hostname)" -keyout key.pem -out cert.pem',
            code="tls_certificate",
            errno=None if isinstance(error, ssl.SSLError) else error.errno,
        ) from error


def _check_key_mode(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return  # loading it says why
    # A group is allowed, unlike for tokens: distributions keep keys for a group such as ssl-cert.
    if mode & 0o007:
        raise HostError(
            f"the key {path} can be reached by everybody (mode {mode & 0o777:04o})",
            why="whoever reads it can pass for this host",
            fix=f"chmod o= {path}",
            code="tls_key_mode",
        )


def _words(error: OSError) -> str:
    # ssl.SSLError is an OSError whose errno is none of the kernel's.
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return str(error.strerror)
