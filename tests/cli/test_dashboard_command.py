"""``lightning-meta dashboard``: it builds without a connection, and says how to save."""

from __future__ import annotations

import json

import pytest
import wandb

from lightning_meta.cli import main
from tests.shipped import CONFIGS, ROOT

pytest.importorskip("wandb_workspaces")
CHOSEN = ("sinusoid_amortized_maml", "physionet_imaml", "omniglot_maml", "clinc150_maml", "clinc150_protonet")
NAMES = ["--entity=me", "--project=mine"]


@pytest.fixture(autouse=True)
def _without_connection_and_key(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()  # which keeps what it has read of keys and settings


def stopped(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dashboard", *arguments])
    return stop.value.code, capsys.readouterr().err


def test_without_a_key_it_builds_and_says_how_to_save(capsys):
    status, message = stopped(NAMES, capsys)
    assert status == 1
    assert "a workspace and a report with 25 panels each are built, but the workspace is not saved" in message
    assert "needs a key" in message
    assert "wandb login" in message
    assert "--output" in message


def test_offline_it_does_not_try(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, message = stopped(NAMES, capsys)
    assert status == 1
    assert "WANDB_MODE=offline" in message


def test_with_a_key_both_are_saved(monkeypatch):
    saved = []
    for path in ("workspaces.Workspace", "reports.v2.Report"):
        monkeypatch.setattr(f"wandb_workspaces.{path}.save", lambda self: saved.append(self))
    main(["dashboard", *NAMES])
    assert [type(part).__name__ for part in saved] == ["Workspace", "Report"]
    assert all((part.entity, part.project) == ("me", "mine") for part in saved)


def test_the_workspace_goes_to_a_file_on_request(tmp_path, capsys):
    main(["dashboard", *NAMES, "--output=workspace.json"])
    model = json.loads((tmp_path / "workspace.json").read_text())
    assert model["entity"] == "me"
    assert "val/acc" in json.dumps(model)
    status, message = stopped([*NAMES, "--output=workspace.json"], capsys)
    assert status == 2
    assert "--overwrite" in message
    main(["dashboard", *NAMES, "--output=workspace.json", "--overwrite"])


@pytest.mark.parametrize("config", [path for path in CONFIGS if path.stem in CHOSEN])
def test_panels_are_those_of_the_configured_learner(config, tmp_path):
    main(["dashboard", *NAMES, f"--config={config}", "--output=workspace.json"])
    text = (tmp_path / "workspace.json").read_text()
    domain, _, learner = config.stem.partition("_")
    classes = domain in ("omniglot", "clinc150")
    assert ("val/acc" in text, "val/mse" in text) == (classes, not classes)
    assert ("train/cg_residual" in text) == (learner == "imaml")
    assert ("inner_gradient_norm" in text) == (learner not in ("protonet", "amortized_maml"))
    assert ('"val_episodes/tasks"' in text) == (domain != "clinc150")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--entity=a/b", "--project=mine"], "entity='a/b'"),
        (["--entity=me", "--project="], "project=''"),
        (["--entity=me"], "project"),
        ([*NAMES, "--output=workspace.csv"], "must end in .json"),
        ([*NAMES, "--output=missing/workspace.json"], "there is no folder 'missing'"),
        ([*NAMES, "--config=missing.yaml"], "missing.yaml"),
        ([*NAMES, "--entitty=me"], "entitty"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    status, error = stopped(arguments, capsys)
    assert status == 2
    assert message in error


def test_a_configuration_may_have_several_files_and_starts_no_run(tmp_path):
    files = [f"--config={ROOT / 'configs' / name}" for name in ("sinusoid_metasgd.yaml", "logger/wandb.yaml")]
    main(["dashboard", *NAMES, *files, "--output=workspace.json"])
    assert "learned_rates/.+" in (tmp_path / "workspace.json").read_text()
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"workspace.json"}
    assert not (tmp_path / "outputs").exists()
