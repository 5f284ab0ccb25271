"""What all tests share: no network, no window, and settings of the script that are put back.

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


@pytest.fixture(scope="session")
def block():
    """The settings as they are written in the script."""
    import image_recognition_cnn as script

    return {name: getattr(script, name) for name in script.RULES}


@pytest.fixture
def settings(block, tmp_path, monkeypatch):
    """Return a function that changes settings and reads them, in an empty folder; put them back."""
    import image_recognition_cnn as script

    def restart():
        for name, value in block.items():
            setattr(script, name, value)
        script.taken.clear()
        script.plt.close("all")

    def change(**changes):
        restart()
        for name, value in changes.items():
            assert name in block, name
            setattr(script, name, value)
        return script.read_settings()

    monkeypatch.chdir(tmp_path)
    yield change
    restart()


@pytest.fixture
def read(settings, monkeypatch):
    """Return a function that reads the settings as a program with these flags does."""
    def read_with(flags="", **written_into_the_block):
        import image_recognition_cnn as script

        monkeypatch.setattr(sys, "argv", [script.__file__, *flags.split()])
        return settings(**written_into_the_block)

    return read_with


@pytest.fixture
def run(settings):
    """Return a function that runs main() in an empty folder with the given settings."""
    import image_recognition_cnn as script

    def run_main(**changes):
        settings(**changes)
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
