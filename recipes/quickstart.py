"""From an array of images to a trained, exported encoder."""

import moco_keras
from moco_keras import augmentations, optimizers, textures

images, _ = textures.draw(2_000, seed=0)  # your uint8 images, (N, 32, 32, 3)

encoder = moco_keras.build_encoder("resnet18", image_size=32, width=16)
model = moco_keras.MoCo(
    encoder,
    augmentations.moco_v2(32),
    queue_size=512,
    momentum=0.99,
    temperature=0.1,
)
model.compile(optimizer=optimizers.SGD(0.015, momentum=0.9, l2=5e-4))
model.fit(images, batch_size=128, epochs=2)
moco_keras.export_encoder(model, "saved_models/quickstart")
