"""A node's settings come from the environment, once, with errors that name the variable."""

from pathlib import Path

import pytest

from worker.settings import NodeSettings, NodeSettingsError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", "file:///store")
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("POWERMEAN_MODEL_ROOTS", raising=False)


def test_defaults_and_derived_places(tmp_path: Path) -> None:
    settings = NodeSettings.read()
    assert settings.model_roots == ()
    assert settings.partition_grace_s == 900
    assert settings.attempt_dir("job-a.1") == tmp_path / "data" / "attempts" / "job-a.1"


def test_model_roots_are_split_at_colons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_MODEL_ROOTS", "/srv/models:/opt/../data::")
    assert NodeSettings.read().model_roots == (Path("/srv/models"), Path("/data"))


def test_the_token_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_TOKEN", "pmn_secret")
    settings = NodeSettings.read()
    assert "pmn_secret" not in repr(settings)
    assert settings.node_token.get_secret_value() == "pmn_secret"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DATA_DIR", None), ("CPU_SLOTS", "-1"), ("PARTITION_GRACE_S", "soon"), ("NODE_ID", "a/b")],
)
def test_errors_name_the_variable(variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(f"POWERMEAN_{variable}")
    else:
        monkeypatch.setenv(f"POWERMEAN_{variable}", value)
    with pytest.raises(NodeSettingsError, match=f"POWERMEAN_{variable}"):
        NodeSettings.read()


def test_labels_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NodeSettings.read().labels == {}
    monkeypatch.setenv("POWERMEAN_LABELS", " zone=a, rack=3,")
    assert NodeSettings.read().labels == {"zone": "a", "rack": "3"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("zone", "zone has no value: write NAME=VALUE"),
        ("zone=a,zone=b", "zone is there twice"),
        ("zone=", "at least 1 character"),
        ("zo ne=a", "should match pattern"),
    ],
)
def test_labels_that_are_none_are_named(value: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_LABELS", value)
    with pytest.raises(NodeSettingsError, match="POWERMEAN_LABELS") as caught:
        NodeSettings.read()
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("value", "address"),
    [("node-1.example", "node-1.example"), ("10.0.0.7", "10.0.0.7"), ("127.0.0.0/8", "127.0.0.1")],
)
def test_the_address_may_be_given_by_its_network(
    value: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_ADDRESS", value)
    assert NodeSettings.read().node_address == address


@pytest.mark.parametrize("value", ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1"])
def test_an_address_of_no_one_host_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_ADDRESS", value)
    with pytest.raises(NodeSettingsError, match="not the address of one host"):
        NodeSettings.read()


@pytest.mark.allow_hosts(["198.51.100.1"])  # nothing is sent there
@pytest.mark.parametrize("value", ["198.51.100.0/24", "10.0.0.0/99", "a/8", "eth0 "])
def test_a_network_of_other_hosts_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_ADDRESS", value)
    with pytest.raises(NodeSettingsError, match="POWERMEAN_NODE_ADDRESS"):
        NodeSettings.read()
