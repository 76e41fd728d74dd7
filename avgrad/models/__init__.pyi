from . import checkpoints as checkpoints
from . import download as download
from . import imagebind as imagebind
from . import open_clip as open_clip
from . import registry as registry
from . import towers as towers
