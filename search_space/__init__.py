"""Architectures and search spaces: values, encoding, operators, presets, metrics, units, errors.

Pure Python and NumPy; knows nothing of torch.
"""

from search_space.architecture import Architecture, Block, Macro, Mixer, Stage
from search_space.components import Component, ModuleSpec, components
from search_space.files import dump_architecture, load_architecture, load_space, space_names
from search_space.known import known, known_names
from search_space.mixers import MixerSpec, Param, mixer_names, mixer_spec, register_mixer_spec
from search_space.space import Genes, SearchSpace, StageSpace
from search_space.space_definition import space_from_dict

__all__ = [
    "Architecture",
    "Block",
    "Component",
    "Genes",
    "Macro",
    "Mixer",
    "MixerSpec",
    "ModuleSpec",
    "Param",
    "SearchSpace",
    "Stage",
    "StageSpace",
    "components",
    "dump_architecture",
    "known",
    "known_names",
    "load_architecture",
    "load_space",
    "mixer_names",
    "mixer_spec",
    "register_mixer_spec",
    "space_from_dict",
    "space_names",
]
