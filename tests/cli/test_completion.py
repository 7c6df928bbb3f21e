"""The completion scripts, in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from lightning_meta.cli import main

_COMPLETE = """
source "$1"
shift
COMP_WORDS=(lightning-meta "$@"); COMP_CWORD=$#; COMPREPLY=()
$(complete -p lightning-meta | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell, folder):
    path = folder / f"completion.{shell}"
    done = pytest.MonkeyPatch()
    with done.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        with pytest.raises(SystemExit) as stopped:
            main(["--print_completion", shell])
    assert stopped.value.code == 0
    return path


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    return script("bash", tmp_path_factory.mktemp("completion"))


@pytest.fixture(scope="module")
def zsh_script(tmp_path_factory):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    return script("zsh", tmp_path_factory.mktemp("completion"))


def completed(path, *words: str) -> set[str]:
    done = subprocess.run(["bash", "-c", _COMPLETE, "bash", path, *words], capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], {"fit", "validate", "test", "predict", "adapt", "baselines"}),
        (["ba"], {"baselines"}),
        (["fit", "--model.inner_st"], {"--model.inner_steps", "--model.inner_state"}),
        (["test", "--data.eval_q"], {"--data.eval_query_shots"}),
        (["fit", "--trainer.max_"], {"--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time"}),
        (["fit", "--model", "Am"], {"AmortizedMAML"}),
        (["fit", "--data", "Sin"], {"SinusoidDataModule"}),
        (["fit", "--model.first_order", ""], {"true", "false"}),
        (["fit", "--model.batch_statistics", "s"], {"support"}),
        (["adapt", "--su"], {"--support"}),
        (["adapt", "--batch_statistics", "r"], {"running"}),
        (["baselines", "--pooled"], {"--pooled_epochs"}),
        (["analyze", ""], {"curvature"}),
        (["analyze", "curvature", "--pro"], {"--probes"}),
        (["analyze", "curvature", "--accept"], {"--accept_differences"}),
        (["analyze", "curvature", "--model.inner_l"], {"--model.inner_lr"}),
    ],
    ids=lambda words: " ".join(sorted(words)),  # of a set too, whose order differs between processes
)
def test_bash_completes(words, expected, bash_script):
    assert expected <= completed(bash_script, *words)
    if words[-1]:
        assert all(word.startswith(words[-1]) for word in completed(bash_script, *words))


def test_bash_completes_files(bash_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert completed(bash_script, "fit", "--config", "mi") == {"mine.yaml"}
    assert completed(bash_script, "adapt", "--ckpt_path", "mi") == {"mine.yaml"}
    assert completed(bash_script, "fit", "--data.root", "f") == {"folder"}


def loaded_by_zsh(path, text) -> subprocess.CompletedProcess[str]:
    """The start of zsh with a script in its path, which it reads whole."""
    (path.parent / "_lightning-meta").write_text(text)  # as a user saves it
    load = (
        f"fpath=({path.parent} $fpath); autoload -Uz compinit && compinit -D && print $_comps[lightning-meta] "
        "&& autoload +X _lightning-meta"
    )
    return subprocess.run(["zsh", "-f", "-c", load], capture_output=True, text=True, check=False)


def test_zsh_takes_the_script(zsh_script):
    text = zsh_script.read_text()
    done = loaded_by_zsh(zsh_script, text)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "_lightning-meta", "")
    assert loaded_by_zsh(zsh_script, text + "\nif (").returncode != 0
    assert "--model.inner_steps" in text


def test_zsh_completes_an_analysis_with_its_own_flags(zsh_script):
    text = zsh_script.read_text()
    flags = text[text.index("_lightning_meta_analyze_curvature_options=(") :]
    assert "--probes" in flags[: flags.index("\n)")]


def test_zsh_completes_a_second_configuration(zsh_script):
    lines = [line.strip() for line in zsh_script.read_text().splitlines() if "--config" in line]
    assert lines
    assert all(line.startswith(('"*"{', '"*--config')) for line in lines), lines  # the star: any number of times


def test_other_shells_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--print_completion", "tcl"])
    assert stopped.value.code == 2
    assert "'bash', 'zsh'" in capsys.readouterr().err


def test_without_shtab_the_message_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--print_completion", "bash"])
    assert stopped.value.code == 2
    assert "pip install 'lightning-meta[completion]'" in capsys.readouterr().err
