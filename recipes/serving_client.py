"""Asks a TensorFlow Serving server for embeddings of image files, by gRPC.

    python recipes/serving_client.py --server=localhost:8500 \
        --model=my_encoder photo.jpg drawing.png

Prints a line of JSON for each file. Needs the package tensorflow-serving-api,
but neither Keras nor moco_keras.
"""

import json
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
    """Sends the files in batches and prints the embeddings."""
    paths = argv[1:]
    if not paths:
        raise app.UsageError("Expected image files. Received none.")
    channel = grpc.insecure_channel(FLAGS.server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    for start in range(0, len(paths), FLAGS.batch_size):
        batch = paths[start : start + FLAGS.batch_size]
        try:
            embeddings = _embed(stub, [Path(p).read_bytes() for p in batch])
        except grpc.RpcError as error:
            sys.exit(f"Error: {error.code().name}: {error.details()}")
        except OSError as error:
            sys.exit(f"Error: {error}")
        for path, embedding in zip(batch, embeddings.tolist(), strict=True):
            print(json.dumps({"file": path, "embedding": embedding}))


def _embed(stub, contents):
    """Returns embeddings, float32 (N, D), of the contents of N image files."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = FLAGS.model
    request.model_spec.signature_name = "serve_encoded"
    if FLAGS.label:
        request.model_spec.version_label = FLAGS.label
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(contents))
    answer = stub.Predict(request, timeout=FLAGS.timeout)
    return tf.make_ndarray(answer.outputs["embedding"])


if __name__ == "__main__":
    app.run(main)
