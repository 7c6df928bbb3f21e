"""Which learner a checkpoint loads as, from where, and with which arguments."""

from __future__ import annotations

import io
import shutil

import lightning as L
import pytest
import torch
from torch import nn

from lightning_meta import (
    ABML,
    ANIL,
    MAML,
    MLP,
    BayesianLearner,
    ImplicitMAML,
    MetaLearner,
    Reptile,
    SinusoidDataModule,
)
from lightning_meta.checkpoints import content as checkpoint_content
from lightning_meta.checkpoints import object_text
from lightning_meta.cli import main
from tests.checkpoints.saved import QUIET, HeadOnly, changed, outputs, save


@pytest.mark.parametrize("other", [Reptile, ANIL, ImplicitMAML, HeadOnly])
def test_another_learners_checkpoint_is_refused(tmp_path, other):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    message = rf"saved by lightning_meta\..*\.MAML, and this is .*\.{other.__name__}: load it with its own"
    with pytest.raises(ValueError, match=message):
        other.load_from_checkpoint(path)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    for run in (trainer.fit, trainer.test):
        with pytest.raises(ValueError, match=message):
            run(other(MLP(), nn.MSELoss()), SinusoidDataModule(train_tasks=25, val_tasks=5), ckpt_path=path)


def test_another_learners_checkpoint_loads_where_it_is_allowed(tmp_path):
    learner = MAML(MLP(8, 3), inner_lr=0.2)
    path = save(learner, tmp_path)
    for allowed in (MAML, "lightning_meta.algorithms.gradient.maml.MAML", [MAML]):
        loaded = ANIL.load_from_checkpoint(path, allow=allowed)
        assert type(loaded) is ANIL
        assert torch.equal(loaded.model.layers[0].weight, learner.model.layers[0].weight)


def test_an_abstract_base_loads_what_the_checkpoint_names(tmp_path):
    path = save(ABML(MLP(), nn.MSELoss()), tmp_path)
    assert type(MetaLearner.load_from_checkpoint(path)) is ABML
    assert type(BayesianLearner.load_from_checkpoint(path)) is ABML
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    with pytest.raises(ValueError, match="BayesianLearner is abstract"):
        BayesianLearner.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="saved by os.system: load it with that class"):
        MetaLearner.load_from_checkpoint(changed(path, __meta_learner_class="os.system"))


def test_a_scripts_own_class_is_known_by_its_name(tmp_path):
    path = save(HeadOnly(MLP(8, 3)), tmp_path)
    loaded = HeadOnly.load_from_checkpoint(changed(path, __meta_learner_class="__main__.HeadOnly"))
    assert loaded.adapted_names == ("layers.4.weight", "layers.4.bias")
    with pytest.raises(ValueError, match="saved by __main__.Other"):
        HeadOnly.load_from_checkpoint(changed(path, __meta_learner_class="__main__.Other"))


def test_a_checkpoint_without_a_class_loads_with_a_warning(tmp_path):
    path = save(MAML(MLP(8, 3)), tmp_path)
    content = torch.load(path)
    del content["meta_learner_class"]
    torch.save(content, path)
    with pytest.warns(UserWarning, match="does not name its learner's class"):
        MAML.load_from_checkpoint(path)


def test_keeping_a_large_model_takes_neither_memory_nor_random_numbers():
    model = nn.Sequential(nn.Linear(8, 20_000, device="meta"), nn.Linear(20_000, 50_000, device="meta"))
    before = torch.get_rng_state()
    assert object_text.to_text(model)["modules"]["1"]["init_args"]["out_features"] == 50_000  # 4 GB, were it built
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_a_method_of_the_class():
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        MAML(MLP(), nn.MSELoss()).load_from_checkpoint("nowhere.ckpt")


class Own(nn.Linear):
    pass


@pytest.mark.parametrize("allow", [f"{__name__}.Own", [f"{__name__}.Own"], Own])
def test_classes_load_where_they_are_allowed_by_name(tmp_path, allow):
    text = {"class_path": f"{__name__}.Own", "init_args": {"in_features": 8, "out_features": 3}}
    learner = MAML(Own(8, 3))
    path = changed(save(learner, tmp_path), model=text)
    with pytest.raises(ValueError, match=rf"model='{__name__}.Own' .* refused.*: pass model=..., or, if you trust"):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, allow=allow)
    assert type(loaded.model) is Own
    assert torch.equal(outputs(loaded), outputs(learner))
    with pytest.raises(ValueError, match="loss_fn=.* refused"):
        MAML.load_from_checkpoint(changed(path, loss_fn=text | {"class_path": "os.system"}), allow=allow)


def test_a_users_class_given_to_the_command_line_must_be_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model=MAML", f"--model.model={__name__}.Own", "--model.loss_fn=torch.nn.MSELoss"]
    arguments += ["--model.model.in_features=1", "--model.model.out_features=1", "--model.optimizer=torch.optim.SGD"]
    arguments += [
        "--model.optimizer.lr=0.125",
        "--data=SinusoidDataModule",
        "--data.train_tasks=25",
        "--data.val_tasks=5",
    ]
    arguments += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    cli = main(["fit", *arguments, "--trainer.enable_model_summary=false"])
    path = cli.trainer.checkpoint_callback.best_model_path
    with pytest.raises(ValueError, match=rf"model='{__name__}.Own' .* allow=\('{__name__}.Own',\)"):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, allow=(f"{__name__}.Own",))
    assert torch.equal(loaded.model.weight, cli.model.model.weight)
    assert loaded.configure_optimizers().defaults["lr"] == 0.125
    again = MAML.load_from_checkpoint(save(loaded, tmp_path), model=Own(1, 1))  # what was built is kept in turn
    assert again.configure_optimizers().defaults["lr"] == 0.125


def own_loss(output, target):
    return nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits", "huber_loss"])
def test_torchs_loss_functions_are_kept(tmp_path, name):
    function = getattr(nn.functional, name)
    assert MAML.load_from_checkpoint(save(MAML(MLP(8, 3), function), tmp_path)).loss_fn is function
    path = changed(save(MAML(MLP(8, 3)), tmp_path), loss_fn=f"torch.nn.functional.{name}")  # as the command line does
    assert MAML.load_from_checkpoint(path).loss_fn is function


def test_allowed_functions_load_and_allowed_classes_must_fit(tmp_path):
    for name in (f"{__name__}.own_loss", "torch.nn.functional.softmax", "torch.nn.functional.torch.load"):
        path = changed(save(MAML(MLP(8, 3)), tmp_path), loss_fn=name)
        with pytest.raises(ValueError, match=f"loss_fn='{name}' .* refused"):
            MAML.load_from_checkpoint(path)
    path = changed(path, loss_fn=f"{__name__}.own_loss")
    assert MAML.load_from_checkpoint(path, allow=f"{__name__}.own_loss").loss_fn is own_loss
    path = changed(
        save(MAML(MLP(8, 3)), tmp_path), model={"class_path": "subprocess.Popen", "init_args": {"args": "ls"}}
    )
    with pytest.raises(ValueError, match=r"model='subprocess.Popen' .* refused"):
        MAML.load_from_checkpoint(path, allow="subprocess.Popen")
    with pytest.raises(ValueError, match="cannot be imported"):
        MAML.load_from_checkpoint(changed(path, model={"class_path": "no.such.Model"}), allow="no.such.Model")


def test_streams_addresses_and_plain_paths_load(tmp_path, monkeypatch):
    learner = MAML(MLP(8, 3))
    path = save(learner, tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target: shutil.copy(path, target))
    for source in (path, str(path), f"file://{path}", io.BytesIO(path.read_bytes()), "http://host/learner.ckpt"):
        assert torch.equal(outputs(MAML.load_from_checkpoint(source)), outputs(learner))
    with path.open("rb") as file:
        assert torch.equal(outputs(MAML.load_from_checkpoint(file)), outputs(learner))


def test_arguments_from_a_file_count_and_run_nothing(tmp_path, trap):
    path = save(MAML(MLP(8, 3), inner_lr=0.3), tmp_path)
    (tmp_path / "a.yaml").write_text(
        "inner_lr: 0.5\nmodel: {class_path: lightning_meta.MLP, init_args: {in_features: 8, out_features: 3}}"
    )
    assert MAML.load_from_checkpoint(path, hparams_file=tmp_path / "a.yaml").inner_lr == 0.5
    (tmp_path / "b.yaml").write_text(f"model: {{class_path: os.system, init_args: {{command: touch {trap}}}}}")
    with pytest.raises(ValueError, match="model='os.system' .* refused"):
        MAML.load_from_checkpoint(path, hparams_file=tmp_path / "b.yaml")


def test_a_learner_with_its_own_setup_reads_checkpoints_with_care(tmp_path):
    class Own(MAML):
        def setup(self, stage):
            pass

    path = save(Own(MLP(), nn.MSELoss()), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="it was cut short"):
        trainer.test(Own(MLP(), nn.MSELoss()), SinusoidDataModule(test_tasks=5), ckpt_path=path)


def test_files_of_arguments_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_content, "MOST_VALUES", 20_000)  # to reach it sooner
    path = save(MAML(MLP(8, 3)), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file hparams_file='.*nowhere.yaml'"):
        MAML.load_from_checkpoint(path, hparams_file=tmp_path / "nowhere.yaml")
    aliases = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for text, fault in (
        ("a: [", "cannot be read"),
        ("[1, 2]", "holds no arguments by name"),
        ("inner_lr: !!python/module:os", "cannot be read"),
        (f"a0: &a0 [x, x]\n{aliases}inner_lr: *a39\n", "holds no arguments by name: it holds more than"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"hparams_file='.*a.yaml' {fault}"):
            MAML.load_from_checkpoint(path, hparams_file=tmp_path / "a.yaml")


def test_a_scripts_class_is_not_this_packages_of_the_same_name(tmp_path):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), __meta_learner_class="__main__.MAML")
    with pytest.raises(ValueError, match=r"saved by __main__.MAML, and this is lightning_meta\..*\.MAML"):
        MAML.load_from_checkpoint(path)


@pytest.mark.parametrize("former", ["lightning_meta.algorithms.maml.MAML", "lightning_meta.MAML"])
def test_a_checkpoint_that_names_a_former_place_of_its_class_loads(tmp_path, former):
    learner = MAML(MLP(8, 3), inner_lr=0.2)
    path = save(learner, tmp_path)
    content = torch.load(path)
    content["meta_learner_class"] = former
    torch.save(content, path)
    loaded = MAML.load_from_checkpoint(path)
    assert type(loaded) is MAML
    assert loaded.inner_lr == 0.2
    assert torch.equal(outputs(loaded), outputs(learner))
    with pytest.raises(ValueError, match=r"saved by .*MAML, and this is .*Reptile"):
        Reptile.load_from_checkpoint(path)
