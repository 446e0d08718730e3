"""What `powermean doctor` looks at everywhere, with real faults."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from powermean import checks
from powermean.artefacts import ArtefactStore
from powermean.checks import Check, run
from powermean.cli import redis_server
from powermean.cli.embedded import free_port, redis_url
from tests.support.small_disk import fill, small_disk


def only(found: Iterator[Check]) -> Check:
    (check,) = found
    return check


def test_a_check_that_fails_itself_is_a_failed_check() -> None:
    def broken() -> Iterator[Check]:
        yield checks.ok("first", "")
        raise RuntimeError("no luck")

    assert [(one.verdict, one.said) for one in run([("odd", broken), ("next", checks.python)])][:2] == [
        ("ok", ""),
        ("failed", "RuntimeError: no luck"),
    ]


def test_a_look_that_hangs_is_a_failed_check() -> None:
    hung = threading.Event()

    def stuck() -> Iterator[Check]:
        yield checks.ok("first", "")
        hung.wait()

    found = run([("mount", stuck), ("python", checks.python)], {"mount": 0.1})
    assert [(one.name, one.verdict) for one in found] == [
        ("first", "ok"),
        ("mount", "failed"),
        ("python", "ok"),
    ]
    hung.set()


def test_packages_that_are_missing_are_named() -> None:
    assert only(checks.packages(["powermean"])).verdict == "ok"
    found = only(checks.packages(["powermean", "no-such-thing"]))
    assert (found.verdict, found.said) == ("failed", "missing: no-such-thing")


def test_a_full_disk_and_a_folder_that_is_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        assert only(checks.disk("data folder", disk)).said.startswith("only ")
        fill(disk)
        found = only(checks.disk("data folder", disk))
    assert (found.verdict, found.remedy) == ("failed", "Make room.")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in only(checks.disk("data folder", tmp_path / "file" / "below")).said


@pytest.fixture(scope="module")
def redis_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    redis_server.write_config(folder / "redis.conf", port, "right", folder)
    with (folder / "redis.conf").open() as given:
        process = subprocess.Popen(
            [redis_server.valkey_program(), "-"], stdin=given, stdout=subprocess.DEVNULL
        )
    deadline = time.monotonic() + 20
    while only(checks.redis_server(redis_url("right", port))).verdict == "failed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield port, "right"
    process.kill()
    process.wait()


def test_redis_as_it_should_be_and_with_faults(redis_at: tuple[int, str]) -> None:
    port, password = redis_at
    assert only(checks.redis_server(redis_url(password, port))).verdict == "ok"
    found = only(checks.redis_server(redis_url("wrong", port)))
    assert found.said.endswith("refuses the password")
    assert "wrong" not in found.said
    from redis import Redis

    with Redis("127.0.0.1", port, password=password) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert only(checks.redis_server(redis_url(password, port))).verdict == "warning"
        client.config_set("maxmemory", "0")
    gone = only(checks.redis_server(redis_url(password, free_port())))
    assert "no answer from 127.0.0.1" in gone.said
    assert only(checks.redis_server("nonsense")).verdict == "failed"


def test_a_store_that_is_read_only_or_none(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    url = f"file://{tmp_path / 'store'}"
    found = only(checks.artefact_store(url, existing=True))
    assert (found.verdict, found.remedy) == (
        "failed",
        "Is its disk mounted? Does POWERMEAN_ARTEFACTS_URL name the server's store?",
    )
    found = list(checks.artefact_store(url, existing=False))[-1]
    assert (found.verdict, "its disk is not mounted" in found.said) == ("warning", True)
    assert list((tmp_path / "store").iterdir()) == []  # a doctor makes no store
    ArtefactStore(url).make()  # as a server does
    for existing in (True, False):
        assert only(checks.artefact_store(url, existing=existing)).verdict == "ok"
    (tmp_path / "file").write_text("")
    assert only(checks.artefact_store(f"file://{tmp_path / 'file'}", existing=False)).verdict == "failed"
    assert only(checks.artefact_store("nonsense://x", existing=False)).verdict == "failed"


def test_a_store_s_password_is_not_shown() -> None:
    said = only(checks.artefact_store("nonsense://me:secret@host/x", existing=True)).said
    assert said.startswith("nonsense://***@host/x: cannot use the artefact store nonsense://***@host/x")


@pytest.mark.parametrize(("off", "verdict"), [(0, "ok"), (10, "warning"), (-10, "warning"), (7200, "failed")])
def test_clocks(off: float, verdict: str) -> None:
    found = only(checks.clock("the server", datetime.now(UTC) - timedelta(seconds=off), time.time()))
    assert found.verdict == verdict
    assert verdict == "ok" or ("ahead of" if off > 0 else "behind") in found.said


def test_who_has_a_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        holder = checks.port_holder("127.0.0.1", port)
        assert holder is not None
        assert "pytest" in holder or "process" in holder
    assert checks.port_holder("127.0.0.1", free_port()) is None


def certificate_for(folder: Path, days: float) -> Path:
    """A self-signed one of `localhost` with its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    file = folder / f"{days}.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, form, plain) + made.public_bytes(pem))
    return file


@contextmanager
def tls(file: Path) -> Iterator[str]:
    """A server with this certificate, for one caller."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True):
                    pass
            except OSError:
                pass  # the caller did not like it

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("days", "trusted", "verdict", "said"),
    [
        (60, True, "ok", "ends on"),
        (5, True, "warning", "ends on"),
        (-1, True, "failed", "expired"),
        (60, False, "failed", "self-signed"),
    ],
)
def test_certificates(
    tmp_path: Path, monkeypatch, days: float, trusted: bool, verdict: str, said: str
) -> None:
    file = certificate_for(tmp_path, days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with tls(file) as url:
        found = only(checks.certificate(url))
    assert (found.verdict, said in found.said) == (verdict, True), found
    assert list(checks.certificate("http://localhost")) == []
