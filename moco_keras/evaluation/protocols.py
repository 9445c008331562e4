"""How published evaluations train a classifier."""

from typing import NamedTuple

from moco_keras import arguments, optimizers, schedules
from moco_keras.models import classifier


class Protocol(NamedTuple):
    """How a published evaluation trains a classifier, by SGD with momentum 0.9.

    Training images are cropped and flipped at random, as by
    `augmentations.crop_and_flip`; test images are as `augmentations.evaluation`
    gives them:

        protocol = protocols.MOCO_LINEAR
        batches = data.labeled_batches(images, crop_and_flip(224), 256)
        steps = math.ceil(images.num_examples / 256)
        model = build_classifier(encoder, 1000, trainable=protocol.trainable)
        model.compile(
            protocol.optimizer(steps),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(
            batches,
            epochs=protocol.epochs,
            steps_per_epoch=steps,
            shuffle=False,  # they are
            callbacks=[CheckFrozen()],
        )

    Attributes:
        trainable: of `build_classifier`.
        learning_rate: of all that is trained, at first.
        head_multiplier: what that is multiplied by for the linear layer.
        batch_size: images in a step.
        scaled: whether the learning rate is for batches of 256, and grows with
            the batch.
        epochs: passes over the training images.
        milestones: epochs, from 0, at which the rate is multiplied by `factor`;
            none means half a cosine, epoch by epoch.
        factor: see `milestones`.
    """

    trainable: str
    learning_rate: float
    epochs: int
    head_multiplier: float = 1.0
    batch_size: int = 256
    scaled: bool = False
    milestones: tuple[int, ...] = ()
    factor: float = 0.1

    def optimizer(self, steps_per_epoch, batch_size=None, epochs=None):
        """Makes the optimizer.

        Args:
            steps_per_epoch: steps in an epoch.
            batch_size: images in a step, of all replicas.
            epochs: passes over the training images; milestones move with them.

        Returns:
            A `moco_keras.optimizers.SGD`.
        """
        if batch_size is None:
            batch_size = self.batch_size
        if epochs is None:
            epochs = self.epochs
        batch_size = arguments.whole(batch_size=batch_size)
        epochs = arguments.whole(epochs=epochs)
        rate = self.learning_rate
        if self.scaled:
            rate *= batch_size / 256
        if self.milestones:
            milestones = [
                max(1, m * epochs // self.epochs) for m in self.milestones
            ]
            schedule = schedules.step_schedule(
                rate, steps_per_epoch, milestones, self.factor
            )
        else:
            schedule = schedules.EpochCosine(rate, steps_per_epoch, epochs)
        return optimizers.SGD(
            schedule,
            momentum=0.9,
            l2=0.0,
            multipliers={classifier.HEAD: self.head_multiplier},
        )


# Linear classification of MoCo v1 and v2: He et al., 2020, section 4.1, and its
# code, main_lincls.py.
MOCO_LINEAR = Protocol("head", 30.0, epochs=100, milestones=(60, 80))
# Of MoCo v3, for ResNets: Chen et al., 2021, appendix A, and its code,
# main_lincls.py.
MOCO_V3_LINEAR = Protocol("head", 0.1, epochs=90, batch_size=1024, scaled=True)
# Fine-tuning on 1% and on 10% of ImageNet's labels. Caron et al., 2020, its
# code, eval_semisup.py; https://arxiv.org/abs/2006.09882.
SWAV_1_PERCENT = Protocol(
    "all", 0.02, epochs=20, head_multiplier=250, milestones=(12, 16), factor=0.2
)
SWAV_10_PERCENT = Protocol(
    "all", 0.01, epochs=20, head_multiplier=20, milestones=(12, 16), factor=0.2
)
# Bardes et al., 2022, its code, README.md; https://arxiv.org/abs/2105.04906.
VICREG_1_PERCENT = Protocol("all", 0.03, epochs=20, head_multiplier=8 / 3)
VICREG_10_PERCENT = Protocol("all", 0.01, epochs=20, head_multiplier=10)
