from . import checkpoints as checkpoints
from . import download as download
from . import imagebind as imagebind
from . import open_clip as open_clip
from . import registry as registry
from . import timm as timm
from . import timm_view as timm_view
from . import towers as towers
