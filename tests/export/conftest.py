"""Fixtures for tests of exports."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from programs import ROOT

import moco_keras


def export_classifier(encoder, path, **kwargs):
    """Exports a classifier of six classes on an encoder."""
    model = moco_keras.build_classifier(encoder, 6)
    return moco_keras.export_classifier(model, path, list("abcdef"), **kwargs)


@pytest.fixture(params=["encoder", "classifier"])
def kind(request):
    """What is exported: a function for it, and the name of its output.

    With the tiny encoders of `make_encoder`, either has six numbers an image.
    """
    return {
        "encoder": SimpleNamespace(
            export=moco_keras.export_encoder, result="embedding"
        ),
        "classifier": SimpleNamespace(
            export=export_classifier, result="probabilities"
        ),
    }[request.param]


@pytest.fixture
def encoded(rng):
    """Sixteen JPEG and PNG files of different sizes."""
    files = []
    for i in range(16):
        shape = (9 + 7 * i, 60 - 3 * i, 3)
        image = rng.integers(0, 256, shape, "uint8")
        encode = tf.io.encode_png if i % 2 else tf.io.encode_jpeg
        files.append(encode(image).numpy())
    return files


@pytest.fixture(scope="session")
def consumer(tmp_path_factory):
    """Runs helpers/serve.c, compiled; skips without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    library = Path(tf.sysconfig.get_lib())
    program = tmp_path_factory.mktemp("consumer") / "serve"
    subprocess.run(
        [
            compiler,
            "-Wall",
            "-Werror",
            f"-I{tf.sysconfig.get_include()}",
            ROOT / "tests/helpers/serve.c",
            "-o",
            program,
            f"-L{library}",
            "-l:libtensorflow_cc.so.2",
            "-l:libtensorflow_framework.so.2",
            f"-Wl,-rpath,{library}",
        ],
        check=True,
    )

    def consume(folder, *arguments, output="embedding"):
        return subprocess.run(
            [program, folder, output, *arguments],
            capture_output=True,
            text=True,
        )

    return consume
