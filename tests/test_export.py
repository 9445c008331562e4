import subprocess
import sys

import keras
import numpy as np
import pytest

import moco_keras
from moco_keras import export_encoder

# TensorFlow's loader looks for Keras, so it is hidden rather than not imported.
WITHOUT_KERAS = """
import sys
sys.modules["keras"] = sys.modules["moco_keras"] = None
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images = tf.constant(np.load(sys.argv[2]))
embedding = loaded.signatures["serving_default"](images=images)["embedding"]
np.save(sys.argv[3], embedding)
"""


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_loads_without_keras(images, tmp_path, precision):
    keras.config.set_dtype_policy(precision)
    encoder = moco_keras.build_encoder("resnet18", 8, width=4)
    export_encoder(encoder, tmp_path / "saved")
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", WITHOUT_KERAS]
    files = [tmp_path / n for n in ("saved", "images.npy", "embedding.npy")]
    subprocess.run([*command, *map(str, files)], check=True, cwd=tmp_path)
    embedding = np.load(files[2])
    expected = moco_keras.backbone(encoder).predict(images, verbose=0)
    assert embedding.dtype == np.float32
    assert embedding.shape == (16, 32)
    np.testing.assert_allclose(
        embedding,
        expected.astype("float32"),
        rtol=1e-2 if precision != "float32" else 1e-5,
        atol=1e-5,
    )


def test_what_exists_is_not_overwritten(make_model, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="Nothing was overwritten"):
        export_encoder(make_model(), tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "precious"
