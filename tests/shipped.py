"""The shipped configurations, and arguments with which tests run them."""

from __future__ import annotations

from pathlib import Path

from tests.domains import WRITERS

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TRAIN_CLASSES = {"clinc150": 18, "omniglot": 1100}  # of the files that tests write, and without turned drawings
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def small(config: Path) -> list[str]:
    """Arguments that make a configuration's run take seconds."""
    few = ["--data.tasks_per_batch=2", "--data.train_tasks=4", "--data.val_tasks=4", "--data.test_tasks=4"]
    domain = config.stem.split("_")[0]
    narrow = {"omniglot": "filters=4", "cifarfs": "widths=[4,4,4,4]"}
    lean = [f"--model.model.init_args.{narrow[domain]}"] if domain in narrow else []
    if "num_train_classes" in config.read_text():
        lean += ["--trainer.limit_train_batches=2", f"--model.num_train_classes={TRAIN_CLASSES[domain]}"]
        lean += ["--data.rotations=false"] if domain == "omniglot" else []
    if domain in WRITERS:
        root = Path(domain)
        if not root.exists():
            root.mkdir()
            WRITERS[domain](root)
        lean += [f"--data.file={root}/parkinsons_updrs.data"] if domain == "parkinsons" else [f"--data.root={root}"]
        counts = ["--data.train_patients=20", "--data.val_patients=4", "--data.test_patients=4"]
        lean += counts if domain == "physionet" else []
    lean += ["--model.eval_inner_steps=3"] if "omniglot_reptile" in config.name else []
    return [
        "--config",
        str(config),
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
        *QUIET,
        *few,
        *lean,
    ]
