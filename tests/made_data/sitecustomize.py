"""With this folder on PYTHONPATH, keras.datasets.mnist and cifar10 serve made pictures, class by colour."""

import importlib.abc
import importlib.machinery
import sys


def made(shape):
    import numpy as np

    random = np.random.default_rng(0)
    y = np.arange(600) % 10
    x = random.integers(0, 30, (600, *shape)) + 22 * y.reshape(-1, *[1] * len(shape))
    x[:, : shape[0] // 2] = 255 - x[:, : shape[0] // 2]
    x, y = x.astype("uint8"), y.astype("uint8").reshape((-1, 1) if len(shape) == 3 else -1)
    return (x[:500], y[:500]), (x[500:], y[500:])


SHAPES = {"keras.src.datasets.mnist": (28, 28), "keras.src.datasets.cifar10": (32, 32, 3)}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in SHAPES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.load_data = lambda *_: made(SHAPES[name])

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
