"""Sphinx builds the documentation by this file; `make docs` runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning_meta

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = HERE / "_build"
sys.path.insert(0, str(HERE / "_extensions"))

# What notebooks' kernels would otherwise keep in the user's home.
for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
    os.environ[variable] = str(BUILD / "jupyter")
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

from copied_examples import copy_examples, draw_thumbnail  # noqa: E402 (found only by the path above)

copy_examples(ROOT / "examples", BUILD / "examples", {"sinusoid_demo": "images/sinusoid_demo.png"})
draw_thumbnail(BUILD / "needs_data.png")

project = "lightning_meta"
author = "the authors of lightning_meta"
release = version = lightning_meta.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_gallery.gen_gallery",
    "from_code",
    "members",
    "names",
]
exclude_patterns = [
    "_build",
    "_extensions",
    "_templates",
    *(f"gallery/*.{end}" for end in ("ipynb", "json", "py", "zip")),
]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "lightning_meta"
html_copy_source = False
html_show_copyright = False

# Markdown and notebooks.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # progress and advice

# Reference from docstrings.
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autosummary_context = {"at_the_top": set(lightning_meta.__all__)}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
default_role = "py:obj"  # docstrings have names in single backticks
nitpick_ignore = [("py:obj", name) for name in ("GBML", "MetaDataset", "Taskset")]  # of learn2learn

# The gallery. Only quick examples run; the others need data or minutes, and tests run them.
sphinx_gallery_conf = {
    "examples_dirs": str(BUILD / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": "/(posterior_tightening|predict_a_table)",
    "image_scrapers": ("copied_examples.written_pictures",),
    "default_thumb_file": str(BUILD / "needs_data.png"),
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "min_reported_time": 1,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}
