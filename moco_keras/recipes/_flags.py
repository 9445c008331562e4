"""Flags of the programs, made of their settings."""

import dataclasses
import sys
import typing

from absl import flags

from moco_keras.recipes import _settings

_DEFINERS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define(defaults, flag_values=flags.FLAGS):
    """Makes an absl flag of each field, with the values of `defaults`."""
    types = typing.get_type_hints(type(defaults))
    fits = isinstance(defaults, _settings.Settings)
    for field in dataclasses.fields(defaults):
        default = getattr(defaults, field.name)
        choices, help = field.metadata["choices"], field.metadata["help"]
        if default is None and fits and field.name in _settings.FITTED:
            help += "; by default what fits the images and the device"
        if choices:
            flags.DEFINE_enum(field.name, default, choices, help, flag_values)
        else:
            kinds = typing.get_args(types[field.name]) or (types[field.name],)
            define = _DEFINERS[kinds[0]]
            define(field.name, default, help, flag_values=flag_values)
        # `--help` lists the flags of the main module, which this one is not.
        flag = flag_values[field.name]
        flag_values.register_key_flag_for_module(sys.argv[0], flag)


def read(kind=_settings.Settings, flag_values=flags.FLAGS):
    """The settings that the command line asks for.

    Args:
        kind: `Settings`, or those of a program that has more.

    Raises:
        ValueError: if a value is out of range.
    """
    values = {
        field.name: flag_values[field.name].value
        for field in dataclasses.fields(kind)
    }
    return kind(**values)
