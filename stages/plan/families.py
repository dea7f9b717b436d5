"""All families that a plan may speak of: the models' and the media stages'."""

from stages.media.options import FAMILY as MEDIA
from stages.models import FAMILIES

ALL = {**FAMILIES, MEDIA.name: MEDIA}
