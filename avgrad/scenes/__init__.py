"""Made-up audio-visual scenes with exact masks: pictures, sounds, speech and texts about a few kinds.

Everything is drawn from a `numpy.random.Generator` and nothing from anywhere else. Numbered series of scenes
come from `scene_rng(domain, seed, index)`: what is trained on and what is tested on use different domains, so
no scene is in both, whatever the seeds are.
"""

from avgrad.scenes.dataset import DatasetError, write_dataset
from avgrad.scenes.kinds import KINDS, Kind, kind_index
from avgrad.scenes.pictures import Scene, draw_scene, scene_rng
from avgrad.scenes.sounds import SAMPLE_RATE, mix_sound, synthesize
from avgrad.scenes.speech import SpokenPhrase, spoken
from avgrad.scenes.texts import texts

__all__ = [
    "KINDS",
    "SAMPLE_RATE",
    "DatasetError",
    "Kind",
    "Scene",
    "SpokenPhrase",
    "draw_scene",
    "kind_index",
    "mix_sound",
    "scene_rng",
    "spoken",
    "synthesize",
    "texts",
    "write_dataset",
]
