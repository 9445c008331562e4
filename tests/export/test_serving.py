import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from programs import ROOT
from replicas import free_ports

from moco_keras import build_classifier, export_classifier, export_encoder

grpc = pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import (  # noqa: E402 (only if it is installed)
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402


@pytest.fixture
def export(make_encoder, tmp_path):
    return export_encoder(make_encoder(), tmp_path / "mine")


@pytest.fixture
def files(rng, tmp_path):
    """Five JPEG files of different sizes."""
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, path in enumerate(paths):
        image = rng.integers(0, 256, (9 + i, 20 - i, 3), "uint8")
        path.write_bytes(tf.io.encode_jpeg(image).numpy())
    return paths


def embed(export, files):
    serve = tf.saved_model.load(export).signatures["serve_encoded"]
    contents = tf.constant([path.read_bytes() for path in files])
    return serve(image_bytes=contents)["embedding"].numpy()


def ask(address, *arguments):
    """Runs the client; returns its finished process."""
    return subprocess.run(
        [
            *(sys.executable, ROOT / "recipes" / "serving_client.py"),
            *(f"--server={address}", "--model=mine", "--batch_size=2"),
            *arguments,
        ],
        capture_output=True,
        text=True,
    )


def answers(result):
    """The files and embeddings that the client printed."""
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    files = [line["file"] for line in lines]
    return files, np.array([line["embedding"] for line in lines])


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers like TensorFlow Serving, which may not be installed."""

    def __init__(self, export):
        self.signatures = tf.saved_model.load(export).signatures
        self.specs = []

    def Predict(self, request, context):
        spec = request.model_spec
        self.specs.append((spec.name, spec.version_label))
        inputs = {
            name: tf.constant(tf.make_ndarray(value))
            for name, value in request.inputs.items()
        }
        answer = predict_pb2.PredictResponse()
        try:
            outputs = self.signatures[spec.signature_name](**inputs)
        except tf.errors.InvalidArgumentError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, error.message)
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer


@contextlib.contextmanager
def serving(stand_in):
    """The address of a server, as long as the context lasts."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        stand_in, server
    )
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(None)


@pytest.mark.slow
def test_the_client_embeds_every_file(export, files):
    stand_in = StandIn(export)
    with serving(stand_in) as address:
        names, embeddings = answers(ask(address, "--label=canary", *files))
        assert names == [str(path) for path in files]
        np.testing.assert_allclose(
            embeddings, embed(export, files), rtol=0, atol=1e-5
        )
        assert (
            stand_in.specs == [("mine", "canary")] * 3
        )  # at most two files each
        files[3].write_text("a list of things to buy")
        refused = ask(address, *files)
        assert refused.returncode == 1
        assert "INVALID_ARGUMENT: " in refused.stderr
        assert "Neither JPEG nor PNG" in refused.stderr
        assert (
            len(refused.stdout.splitlines()) == 2
        )  # those of the first request


@pytest.mark.slow
def test_the_client_prints_classes(make_encoder, files, tmp_path):
    names = ["ein Hund", "猫", os.fsdecode(b"\xff")]
    folder = export_classifier(
        build_classifier(make_encoder(), 3), tmp_path / "mine", names
    )
    with serving(StandIn(folder)) as address:
        result = ask(address, *files)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in files]
    for line in lines:
        assert line.keys() == {"file", "classes", "probabilities"}
        best = np.argmax(line["probabilities"])
        assert line["classes"][0] == names[best]
        assert sorted(line["classes"]) == sorted(names)


@pytest.mark.slow
def test_the_client_reports_a_missing_server_or_file(files):
    (port,) = free_ports(1)
    result = ask(f"localhost:{port}", "--timeout=1", *files)
    assert result.returncode == 1
    assert re.search("Error: (UNAVAILABLE|DEADLINE_EXCEEDED)", result.stderr)
    result = ask(f"localhost:{port}", "gone.jpg")
    assert result.returncode == 1
    assert "Error: [Errno 2] No such file" in result.stderr


def test_the_configurations_of_the_guide_are_valid():
    guide = (ROOT / "recipes" / "serving.md").read_text()
    (canary,) = re.findall(r"(    model_config_list .*?)\n\n", guide, re.S)
    plain = (ROOT / "recipes" / "models.config").read_text()
    for text, labels in ((plain, {}), (canary, {"stable": 1, "canary": 2})):
        config = text_format.Parse(
            text, model_server_config_pb2.ModelServerConfig()
        )
        (model,) = config.model_config_list.config
        assert model.name == "my_encoder"
        assert dict(model.version_labels) == labels
        versions = set(model.model_version_policy.specific.versions)
        assert versions == set(labels.values())


@pytest.fixture
def model_server(export, tmp_path):
    """TensorFlow Serving itself, its gRPC and REST ports and its log."""
    program = shutil.which("tensorflow_model_server")
    if program is None:
        pytest.skip("tensorflow_model_server is not on the PATH")
    port, rest_port = free_ports(2)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(program, f"--port={port}", f"--rest_api_port={rest_port}"),
                *("--model_name=mine", f"--model_base_path={export.parent}"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
        )
    try:
        rest = f"http://localhost:{rest_port}/v1/models/mine"
        wait_for(rest, process, log)
        yield f"localhost:{port}", rest, log
    finally:
        process.kill()
        process.wait()


def wait_for(rest, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(rest) as answer:
                if "AVAILABLE" in answer.read().decode():
                    return
        except OSError:  # not yet
            pass
        time.sleep(0.1)
    pytest.fail(f"The server was not ready in a minute:\n{log.read_text()}")


def predict(rest, signature, instances):
    request = {"signature_name": signature, "instances": instances}
    with urllib.request.urlopen(
        f"{rest}:predict", data=json.dumps(request).encode()
    ) as answer:
        return np.array(json.load(answer)["predictions"])


def test_tensorflow_serving_returns_the_same_embeddings(
    model_server, export, files, images
):
    address, rest, log = model_server
    assert "Number of warmup records read: 4" in log.read_text()
    expected = embed(export, files)
    _, embeddings = answers(ask(address, *files))
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)
    encoded = [
        {"b64": base64.b64encode(path.read_bytes()).decode()} for path in files
    ]
    np.testing.assert_allclose(
        predict(rest, "serve_encoded", encoded), expected, rtol=0, atol=1e-5
    )
    served = tf.saved_model.load(export).signatures["serving_default"]
    np.testing.assert_allclose(
        predict(rest, "serving_default", images.tolist()),
        served(images=tf.constant(images))["embedding"],
        rtol=0,
        atol=1e-5,
    )
    noise = [{"b64": base64.b64encode(b"noise").decode()}]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        predict(rest, "serve_encoded", noise)
