"""Synthetic audio-visual scenes with exact masks: images, sounds, speech and texts about a few classes.

All randomness comes from a `numpy.random.Generator`. Numbered series of scenes come from
`scene_rng(domain, seed, index)`: training and test data use different domains, so that no scene is in both, whatever
the seeds are.
"""

from avgrad.scenes.classes import CLASSES, ObjectClass, class_index
from avgrad.scenes.images import Scene, draw_scene, scene_rng
from avgrad.scenes.layouts import DatasetError, list_layouts, write_dataset
from avgrad.scenes.sounds import SAMPLE_RATE, mix_sound, synthesize
from avgrad.scenes.speech import SpokenPhrase, spoken
from avgrad.scenes.texts import texts

__all__ = [
    "CLASSES",
    "SAMPLE_RATE",
    "DatasetError",
    "ObjectClass",
    "Scene",
    "SpokenPhrase",
    "class_index",
    "draw_scene",
    "list_layouts",
    "mix_sound",
    "scene_rng",
    "spoken",
    "synthesize",
    "texts",
    "write_dataset",
]
