"""Architectures and search spaces: values, encoding, operators, presets, metrics, units, errors.

Pure Python and NumPy; knows nothing of torch.
"""

from search_space import block_kinds  # noqa: F401  they register themselves
from search_space.architecture import Architecture, Stage
from search_space.around import Around, around
from search_space.blocks import BLOCKS, Block, BlockKind, Mixer, metaformer
from search_space.components import Component, ModuleSpec, components
from search_space.files import dump_architecture, load_architecture, load_space, space_names
from search_space.known import known, known_names
from search_space.macro import Macro
from search_space.mixers import MIXERS, MixerSpec
from search_space.registry import Param
from search_space.space import SearchSpace
from search_space.space_definition import space_from_dict
from search_space.stage_space import Genes, StageSpace

__all__ = [
    "BLOCKS",
    "MIXERS",
    "Architecture",
    "Around",
    "Block",
    "BlockKind",
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
    "around",
    "components",
    "dump_architecture",
    "known",
    "known_names",
    "load_architecture",
    "load_space",
    "metaformer",
    "space_from_dict",
    "space_names",
]
