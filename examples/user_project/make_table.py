"""Writes examples.csv: 25 classes of 20 examples with 4 numbers each, some far off."""

import numpy as np
import polars as pl

random = np.random.default_rng(0)
classes, examples, features = 25, 20, 4
centers = random.normal(scale=2, size=(classes, 1, features))
values = centers + random.standard_t(2, size=(classes, examples, features))
columns = {f"x{i}": values[..., i].ravel().round(3) for i in range(features)}
labels = np.repeat([f"class{number:02}" for number in range(classes)], examples)
pl.DataFrame({"label": labels} | columns).write_csv("examples.csv")
