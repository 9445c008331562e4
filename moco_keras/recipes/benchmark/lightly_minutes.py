"""Trains lightly's MoCo for some minutes, where lightly is installed.

Its settings are those of lightly's own CIFAR-10 benchmark: a ResNet-18 whose
batch norms have eight splits, an MLP head, batches of 128, a symmetric loss, a
queue of 4096 keys, and a cosine from a learning rate of 0.06 to 0, here over
the steps that there is time for.
"""

import copy
import itertools
import json
import math
import sys
import time
from importlib import metadata

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator, utils
from lightly.models.modules import heads
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

_BATCH_SIZE = 128
_MEASURED = 0.02  # of the time, on steps before the training


class _Views(Dataset):
    def __init__(self, images):
        self.images = [Image.fromarray(image) for image in images]
        self.transform = SimCLRTransform(
            input_size=32, cj_strength=0.5, gaussian_blur=0.0
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i])


class _MoCo:
    def __init__(self, width):
        resnet = ResNetGenerator("resnet-18", width=width / 64, num_splits=8)
        dim = 8 * width
        self.backbone = nn.Sequential(
            *list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.query_encoder = nn.Sequential(
            self.backbone, heads.MoCoProjectionHead(dim, dim, 128)
        )
        self.key_encoder = copy.deepcopy(self.query_encoder)
        utils.deactivate_requires_grad(self.key_encoder)
        self.loss = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        self.optimizer = torch.optim.SGD(
            self.query_encoder.parameters(),
            lr=0.06,
            momentum=0.9,
            weight_decay=5e-4,
        )

    def step(self, views, rate):
        utils.update_momentum(self.query_encoder, self.key_encoder, m=0.99)
        losses = []
        for im_q, im_k in (views, views[::-1]):
            q = self.query_encoder(im_q)
            with torch.no_grad():
                im_k, order = utils.batch_shuffle(im_k)
                k = utils.batch_unshuffle(self.key_encoder(im_k), order)
            losses.append(self.loss(q, k))
        self.optimizer.param_groups[0]["lr"] = rate
        (sum(losses) / 2).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def features(self, images):
        """Of images as they are, normalized; float32 (N, D)."""
        mean, std = (
            torch.tensor(IMAGENET_NORMALIZE[name])[:, None, None]
            for name in ("mean", "std")
        )
        self.backbone.train(False)
        with torch.no_grad():
            parts = [
                self.backbone(
                    (torch.tensor(x).movedim(3, 1) / 255 - mean) / std
                )
                for x in np.array_split(images, -(-len(images) // 256))
            ]
        return torch.cat(parts).numpy()


def _batches(loader):
    """Views, as many as asked for."""
    return itertools.chain.from_iterable(loader for _ in itertools.count())


def train(s):
    """Trains for the minutes of the settings; writes features."""
    data = np.load(s["data"])
    loader = DataLoader(
        _Views(data["train"]),
        batch_size=_BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=s["loader_processes"],
        persistent_workers=True,
    )
    seconds = 60 * s["minutes"]
    torch.manual_seed(s["seed"])
    trial, ends = _MoCo(s["width"]), []
    # Batches that were read while the first step ran take no time.
    ready = 1 + loader.num_workers * loader.prefetch_factor
    for views in _batches(loader):
        trial.step(views, 0.06)
        ends.append(time.perf_counter())
        measured = ends[ready:]
        if (
            len(measured) > 3
            and measured[-1] - measured[0] > _MEASURED * seconds
        ):
            break
    step = (measured[-1] - measured[0]) / (len(measured) - 1)
    steps = max(1, round(seconds / step))
    torch.manual_seed(s["seed"])
    model = _MoCo(s["width"])
    began = time.perf_counter()
    for i, views in enumerate(itertools.islice(_batches(loader), steps)):
        model.step(views, 0.06 * (1 + math.cos(math.pi * i / steps)) / 2)
    took = time.perf_counter() - began
    np.savez(
        s["features"], **{n: model.features(data[n]) for n in ("train", "test")}
    )
    print(
        json.dumps(
            {
                "minutes_of_fit": took / 60,
                "images_per_second": steps * _BATCH_SIZE / took,
                "passes": steps * _BATCH_SIZE / len(data["train"]),
                "device": f"{torch.get_num_threads()} threads",
                "versions": {
                    name: metadata.version(name)
                    for name in ("lightly", "torch", "torchvision")
                },
            }
        )
    )


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
