"""What all tests share: no network, no window, an empty folder, settings.

The script is imported in functions only, as pytest-xdist loads this file in a process that runs no
test, too, and TensorFlow takes seconds to load.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

pytest.register_assert_rewrite("helpers")
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[name] = "http://127.0.0.1:9"  # nothing listens there
os.environ.update(no_proxy="", NO_PROXY="", MPLBACKEND="Agg", KERAS_HOME=tempfile.mkdtemp())
atexit.register(shutil.rmtree, os.environ["KERAS_HOME"], ignore_errors=True)
sys.path.insert(0, os.environ.get("SCRIPT_FOLDER") or str(pathlib.Path(__file__).parents[1]))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Return a function that reads the settings with flags and with values written into the block.

    The block is put back at once, and the test runs in an empty folder.
    """
    import image_recognition_cnn as script

    def read(flags="", **written_into_the_block):
        with monkeypatch.context() as block:
            for name, value in written_into_the_block.items():
                assert name in script.RULES, name
                block.setattr(script, name, value)
            return script.read_settings(flags.split())

    monkeypatch.chdir(tmp_path)
    yield read
    script.plt.close("all")


@pytest.fixture
def run(settings, monkeypatch):
    """Return a function that runs main() in an empty folder with values written into the block."""
    import image_recognition_cnn as script

    def run_main(**written_into_the_block):
        with monkeypatch.context() as block:
            for name, value in written_into_the_block.items():
                block.setattr(script, name, value)
            return script.main()

    return run_main


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out what takes half of a run: pictures, exports, the answers without a network."""
    import image_recognition_cnn as script

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    for name in set(dir(script)) - {"draw_training_images"}:  # on this, the first weights depend
        if name.startswith(("draw_", "write_p", "describe_data")):
            monkeypatch.setattr(script, name, lambda *_, **__: None)
