"""The benchmark's workloads in lightly, for an interpreter that has it.

Its own modules, joined as its documentation's MoCo example joins them.
"""

import copy
import io
from pathlib import Path

import numpy as np
import timing
import torch
from lightly import transforms
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator, utils
from lightly.utils.benchmarking import knn_predict
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _encoder(s):
    resnet = ResNetGenerator(
        "resnet-18",
        width=s["width"] / 64,
        num_splits=s["bn_splits"] if s["bn_splits"] > 1 else 0,
    )
    return nn.Sequential(
        *list(resnet.children())[:-1],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * s["width"], 128),
    )


class _MoCo:
    def __init__(self, s):
        self.query_encoder = _encoder(s).to(_DEVICE)
        self.key_encoder = copy.deepcopy(self.query_encoder)
        utils.deactivate_requires_grad(self.key_encoder)
        self.loss = NTXentLoss(
            temperature=0.1, memory_bank_size=(s["queue_size"], 128)
        ).to(_DEVICE)
        self.optimizer = torch.optim.SGD(
            self.query_encoder.parameters(),
            lr=0.03,
            momentum=0.9,
            weight_decay=5e-4,
        )
        self.bfloat16 = s["precision"] == "mixed_bfloat16"

    def step(self, im_q, im_k):
        utils.update_momentum(self.query_encoder, self.key_encoder, m=0.99)
        with torch.autocast(_DEVICE, torch.bfloat16, self.bfloat16):
            q = self.query_encoder(im_q)
            with torch.no_grad():
                im_k, order = utils.batch_shuffle(im_k)
                k = utils.batch_unshuffle(self.key_encoder(im_k), order)
        loss = self.loss(q.float(), k.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def step(s):
    """Steps of MoCo on ready views."""
    model = _MoCo(s)
    shape = (s["batch_size"], 3, 32, 32)
    im_q, im_k = torch.randn((2, *shape), device=_DEVICE)

    def run():
        for _ in range(s["steps"]):
            model.step(im_q, im_k)

    return run, s["steps"] * s["batch_size"]


def _cifar_views(min_area):
    return transforms.MoCoV2Transform(
        input_size=32, min_scale=min_area, gaussian_blur=0.0, cj_hue=0.1
    )


def augment_32(s):
    """Two views of small images in memory."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (s["batch_size"], 32, 32, 3), "uint8")
    images = [Image.fromarray(p) for p in pixels]
    transform = _cifar_views(min_area=0.08)

    def run():
        for image in images:
            transform(image)

    return run, len(images)


def augment_224(s):
    """Two views of photographs, decoded from JPEG in memory."""
    files = [path.read_bytes() for path in sorted(Path(s["jpegs"]).iterdir())]
    transform = transforms.MoCoV2Transform(input_size=224, cj_hue=0.1)

    def run():
        for file in s["epochs"] * files:
            transform(Image.open(io.BytesIO(file)).convert("RGB"))

    return run, s["epochs"] * len(files)


class _Views(Dataset):
    def __init__(self, images, transform):
        self.images = [Image.fromarray(image) for image in images]
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i])


def _loader(s):
    return DataLoader(
        _Views(np.load(s["images"]), _cifar_views(min_area=0.2)),
        batch_size=s["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=s["loader_processes"],
        persistent_workers=True,
    )


def input_pipeline(s):
    """Epochs of two views, without a model."""
    loader = _loader(s)

    def run():
        for _ in loader:
            pass

    return run, len(loader) * s["batch_size"]


def end_to_end(s):
    """Epochs of training, from images in memory."""
    loader = _loader(s)
    model = _MoCo(s)

    def run():
        for im_q, im_k in loader:
            model.step(im_q.to(_DEVICE), im_k.to(_DEVICE))

    return run, len(loader) * s["batch_size"]


def momentum_update(s):
    """Moves of the key encoder."""
    model = _MoCo(s)

    def run():
        for _ in range(s["steps"]):
            utils.update_momentum(model.query_encoder, model.key_encoder, 0.99)

    return run, 0


def queue(s):
    """The loss against the queue, its gradient, and the queue's advance."""
    loss = NTXentLoss(temperature=0.1, memory_bank_size=(s["queue_size"], 128))
    q = torch.randn(s["batch_size"], 128, requires_grad=True)
    k = torch.randn(s["batch_size"], 128)

    def run():
        for _ in range(s["steps"]):
            loss(q, k).backward()

    return run, s["steps"] * s["batch_size"]


def knn(s):
    """Classification of features by their neighbours."""
    rng = np.random.default_rng(0)
    bank, queries = (
        functional.normalize(
            torch.tensor(rng.normal(size=(n, 512)), dtype=torch.float32)
        )
        for n in (s["bank"], s["queries"])
    )
    labels = torch.tensor(rng.integers(0, 10, s["bank"]))

    def run():
        for chunk in queries.split(1024):
            knn_predict(chunk, bank.T, labels, num_classes=10)

    return run, s["queries"]


if __name__ == "__main__":
    works = (
        step,
        augment_32,
        augment_224,
        input_pipeline,
        end_to_end,
        momentum_update,
        queue,
        knn,
    )
    timing.time_on_request(
        works,
        ("lightly", "torch", "torchvision"),
    )
