"""Asks a TensorFlow Serving server about image files, by gRPC.

    python recipes/serving_client.py --server=localhost:8500 \
        --model=my_encoder photo.jpg drawing.png

Prints a line of JSON for each file: the embedding that an encoder returns, or
the classes and probabilities that a classifier returns. Needs the package
tensorflow-serving-api, but neither Keras nor moco_keras.
"""

import json
import os
import sys
from pathlib import Path

import grpc
import tensorflow as tf
from absl import app, flags
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

FLAGS = flags.FLAGS
flags.DEFINE_string("server", "localhost:8500", "host and gRPC port")
flags.DEFINE_string("model", "my_encoder", "the name that the server gives it")
flags.DEFINE_string(
    "label", None, "of a version, such as canary; by default the last version"
)
flags.DEFINE_integer("batch_size", 32, "files in a request", lower_bound=1)
flags.DEFINE_float("timeout", 10.0, "seconds to wait for an answer")


def main(argv):
    """Sends the files in batches and prints the answers."""
    paths = argv[1:]
    if not paths:
        raise app.UsageError("Expected image files. Received none.")
    channel = grpc.insecure_channel(FLAGS.server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    for start in range(0, len(paths), FLAGS.batch_size):
        batch = paths[start : start + FLAGS.batch_size]
        try:
            answers = _ask(stub, [Path(p).read_bytes() for p in batch])
        except grpc.RpcError as error:
            sys.exit(f"Error: {error.code().name}: {error.details()}")
        except OSError as error:
            sys.exit(f"Error: {error}")
        for path, answer in zip(batch, answers, strict=True):
            # Names of classes are bytes.
            print(json.dumps({"file": path, **answer}, default=os.fsdecode))


def _ask(stub, contents):
    """Returns the outputs for each of some image files, lists by name."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = FLAGS.model
    request.model_spec.signature_name = "serve_encoded"
    if FLAGS.label:
        request.model_spec.version_label = FLAGS.label
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(contents))
    outputs = stub.Predict(request, timeout=FLAGS.timeout).outputs
    values = {
        name: tf.make_ndarray(outputs[name]).tolist()
        for name in sorted(outputs)
    }
    return [
        {name: value[i] for name, value in values.items()}
        for i in range(len(contents))
    ]


if __name__ == "__main__":
    app.run(main)
