"""Both servers speak TLS themselves when they are given a certificate; a wrong one stops the start with a reason."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import subprocess
import sys
from pathlib import Path

import boto3
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.server import Server, running


def certificate(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate for this machine, at that address, which vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "oscar test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_file, key_file


def test_api_and_s3_over_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    with running(tmp_path / "data", OSCAR_TLS_CERT=str(cert), OSCAR_TLS_KEY=str(key)) as server:
        assert server.endpoint.startswith("https://")
        assert server.s3.startswith("https://")
        account = (server.user, server.password)
        with httpx2.Client(verify=ssl.create_default_context(cafile=cert), auth=account) as client:
            answer = client.get(f"{server.endpoint}/system/config")
            assert answer.status_code == 200
            assert "max-age" in answer.headers["Strict-Transport-Security"]
            provider = answer.json()["minio_provider"]
        assert provider["endpoint"] == server.s3
        store = boto3.client(
            "s3",
            endpoint_url=server.s3,
            aws_access_key_id=provider["access_key"],
            aws_secret_access_key=provider["secret_key"],
            region_name="us-east-1",
            verify=str(cert),
        )
        store.create_bucket(Bucket="secure")
        store.put_object(Bucket="secure", Key="a", Body=b"x" * 5_000_000)
        assert store.get_object(Bucket="secure", Key="a")["Body"].read() == b"x" * 5_000_000
        with pytest.raises(httpx2.TransportError):
            httpx2.get(server.endpoint.replace("https:", "http:") + "/health")


def test_idle_clients_do_not_hold_up_the_end(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    settings = {"OSCAR_TLS_CERT": str(cert), "OSCAR_TLS_KEY": str(key), "OSCAR_DRAIN_SECONDS": "600"}
    with (
        running(tmp_path / "data", **settings) as server,
        httpx2.Client(verify=ssl.create_default_context(cafile=cert)) as client,
    ):
        for address in (f"{server.endpoint}/health", server.s3):
            assert client.get(address).status_code in {200, 403}
        # Both connections are open, and nobody reads what comes on them. `stop` gives up before the drain would.
        assert server.stop() == 0


def test_the_cli_on_this_machine_finds_it(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls")
    with running(tmp_path / "data", OSCAR_TLS_CERT=str(cert), OSCAR_TLS_KEY=str(key)) as server:
        environment = {**server.environment(), "SSL_CERT_FILE": str(cert)}
        done = subprocess.run(
            [sys.executable, "-m", "oscar", "bucket", "list", "--json"],
            check=False,
            capture_output=True,
            env=environment,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wrong", ["no key", "no file", "not PEM", "another key"])
def test_a_wrong_certificate_stops_the_start(tmp_path: Path, wrong: str) -> None:
    cert, key = certificate(tmp_path / "tls")
    _, other = certificate(tmp_path / "other")
    settings = {"OSCAR_TLS_CERT": str(cert), "OSCAR_TLS_KEY": str(key)}
    if wrong == "no key":
        del settings["OSCAR_TLS_KEY"]
    elif wrong == "no file":
        cert.unlink()
    elif wrong == "not PEM":
        cert.write_text("rubbish")
    else:
        settings["OSCAR_TLS_KEY"] = str(other)
    environment = Server(tmp_path / "data", settings).environment()
    done = subprocess.run(
        [sys.executable, "-m", "oscar", "serve"],
        check=False,
        capture_output=True,
        env=environment,
        timeout=60,
    )
    said = done.stderr.decode()
    assert done.returncode != 0
    assert "OSCAR_TLS_" in said
    assert "Traceback" not in said
