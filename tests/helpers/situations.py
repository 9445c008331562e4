"""The programs, prepared for the situations of `test_situations.py`.

    python tests/helpers/situations.py PROGRAM FOLDER

runs a program in a folder that `PROGRAMS[PROGRAM].prepare` has made, until it
is about to write its results. There it prints PAUSED and waits for a line.
"""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import programs
import shallow
import tensorflow as tf

import moco_keras
from moco_keras.data import textures
from moco_keras.recipes import (
    _embed_parts,
    _history,
    _pictures,
    _pretrain,
    embed,
    export,
    image_folder,
)

# A name with nearly everything that breaks names.
ODD = os.fsdecode(
    b"a b'\"$x_1$%s{0}*[1]\\\n\xd7\x97\xf0\x9f\x98\x80\xe7\x8c\xab\xff"
)


def write_images(folder, count=24):
    """Images in a folder for each of two classes."""
    for i, image in enumerate(textures.draw(count, seed=0)[0]):
        path = folder / ("a", ODD)[i % 2] / f"{i}{ODD}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())


def contents(folder):
    """What the files in a folder hold."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def damage(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Training:
    """A finished run, whose continuation by an epoch was interrupted."""

    writer = moco_keras, "export_encoder"
    owns = True  # its folder, so that a second process is refused
    finishes = True  # and then refuses to run again
    room = 40_000  # bytes, enough to start with and too few to finish

    def prepare(self, folder):
        write_images(folder / "images")
        self.run(folder, epochs=1)
        with mock.patch.object(
            _history.History, "on_epoch_end", side_effect=KeyboardInterrupt
        ):
            try:
                self.run(folder)
            except KeyboardInterrupt:
                return
        raise AssertionError("It was not interrupted.")

    def run(self, folder, **changes):
        run_dir = folder / changes.pop("run_dir", "run")
        settings = image_folder.FolderSettings(
            **programs.TINY,
            backbone="resnet18",
            train_examples=24,
            test_examples=8,
            images=str(folder / "images"),
            image_size=32,
            run_dir=str(run_dir),
        )
        settings = dataclasses.replace(settings, **changes)

        # Drawing takes seconds, and no situation is one of it. Each picture
        # differs, so that `finished` tells one that was drawn again.
        def draw(path, draw_to):
            path.write_bytes(os.urandom(8))

        with (
            shallow.networks(),
            mock.patch.object(_pictures, "draw", draw),
        ):
            _pretrain.pretrain(settings, "image_folder", image_folder.read)

    def finished(self, folder):
        names = ("encoder", "metrics.json", "model.keras", "settings.json")
        return {
            path: content
            for path, content in contents(folder / "run").items()
            if path.parts[0] in names or path.suffix == ".png"
        }

    def outcome(self, folder):
        weights, metrics = programs.numbers(folder / "run")
        return [array for _, array in weights], metrics

    def mistake(self, folder):
        """A flag that is refused once the images are read."""
        self.run(folder, run_dir="other", test_examples=99)

    def damage(self, folder):
        """Damages the newest checkpoint; an older one is used instead."""
        newest = sorted((folder / "run/checkpoints").glob("*.data-*"))[-1]
        damage(newest)
        return None


class Embedding:
    """A finished embedding, and another one that was interrupted."""

    writer = np, "savez"
    owns, finishes, room = True, False, 8192

    def prepare(self, folder):
        write_images(folder / "images")
        with shallow.networks():
            encoder = moco_keras.build_encoder("resnet18", 8, width=2)
        moco_keras.export_encoder(encoder, folder / "encoder")
        self.run(folder, out="finished.npz")
        (folder / f"images/a/0{ODD}.png").touch()
        write, parts = np.savez, []

        def stop(*args, **arrays):
            if parts:
                raise KeyboardInterrupt
            parts.append(args)
            return write(*args, **arrays)

        with mock.patch.object(np, "savez", stop):
            try:
                self.run(folder)
            except KeyboardInterrupt:
                return
        raise AssertionError("It was not interrupted.")

    def run(self, folder, out="features.npz"):
        settings = embed.EmbedSettings(
            encoder=str(folder / "encoder"),
            images=str(folder / "images"),
            out=str(folder / out),
            batch_size=5,
        )
        with mock.patch.object(_embed_parts, "_FILES_OF_A_PART", 10):
            embed.embed(settings)

    def finished(self, folder):
        found = contents(folder / "encoder")
        return {**found, "npz": (folder / "finished.npz").read_bytes()}

    def outcome(self, folder):
        with np.load(folder / "features.npz") as file:
            return [file["features"]], file["files"].tolist()

    def mistake(self, folder):
        self.run(folder, out="features.npy")

    def damage(self, folder):
        """Damages a part, which is computed again."""
        (part,) = folder.glob("features.*.partial/*.npz")
        damage(part)
        return None


class Export:
    """What an export reads of a run, and one version; it gets another."""

    writer = keras.Model, "save"
    owns, finishes, room = False, False, 40_000  # each makes a version

    def prepare(self, folder):
        run = folder / "run"
        run.mkdir()
        with shallow.networks():
            encoder = moco_keras.build_encoder("resnet18", 32, width=2)
        model = moco_keras.MoCo(encoder, queue_size=16)
        moco_keras.export_encoder(model, run / "encoder")
        model.save(run / "model.keras")
        for name in ("settings.json", "metrics.json"):
            (run / name).write_text("{}")

    def run(self, folder, **changes):
        run_dir = str(folder / "run")
        export.export(export.ExportSettings(model=run_dir, **changes))

    def finished(self, folder):
        return {
            path: content
            for path, content in contents(folder / "run").items()
            if path.parts[0] != "encoder" or path.parts[1] == "1"
        }

    def outcome(self, folder):
        layer = moco_keras.load_encoder(folder / "run/encoder/2")
        return [layer(textures.draw(4, seed=1)[0]).numpy()], None

    def mistake(self, folder):
        self.run(folder, version=1)

    def damage(self, folder):
        """Damages the model, without which nothing can be exported."""
        file = folder / "run/model.keras"
        shutil.copy(file, folder / "whole.keras")
        damage(file)
        return lambda: shutil.move(folder / "whole.keras", file)


PROGRAMS = {
    "image_folder": Training(),
    "embed": Embedding(),
    "export": Export(),
}


def main(name, folder):
    """Runs a program that pauses before it writes its results."""
    program = PROGRAMS[name]
    owner, function = program.writer
    write = getattr(owner, function)

    def pause(*args, **kwargs):
        print("PAUSED", flush=True)
        sys.stdin.readline()
        return write(*args, **kwargs)

    with mock.patch.object(owner, function, pause):
        program.run(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
